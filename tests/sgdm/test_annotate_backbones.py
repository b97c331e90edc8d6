from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from sgdm.annotate.backbones import WeightsUnavailable, load_backbone
from sgdm.annotate.names import FeatureChoice

BACKBONE = "test_vit"  # timm's own small network for tests
CPU = torch.device("cpu")


def images(count: int, size: int = 8) -> Tensor:
    return torch.randint(0, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file(timm.create_model(BACKBONE, pretrained=False).state_dict(), path)
    return path


def test_backbone_sees_the_whole_image_at_its_own_size_and_statistics(weights: Path) -> None:
    encoder = load_backbone(BACKBONE, weights, CPU)
    assert encoder.name == BACKBONE and len(encoder.digest) == 64
    network = timm.create_model(BACKBONE, pretrained=False)
    network.load_state_dict(load_file(weights))
    network.eval().reset_classifier(0)
    config = network.pretrained_cfg
    data = images(3, size=32)
    pixels = F.interpolate(data / 255, config["input_size"][1:], mode="bicubic", antialias=True).clamp(0, 1)
    mean, deviation = (torch.tensor(config[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    features = encoder(data)
    assert features.shape == (3, encoder.dimension) and features.dtype == torch.float32
    torch.testing.assert_close(features, network((pixels - mean) / deviation), atol=1e-5, rtol=1e-5)


def test_state_dict_of_pytorch_is_read_too(weights: Path, tmp_path: Path) -> None:
    torch.save(load_file(weights), tmp_path / "model.pth")
    data = images(2, size=32)
    assert torch.equal(
        load_backbone(BACKBONE, tmp_path / "model.pth", CPU)(data), load_backbone(BACKBONE, weights, CPU)(data)
    )


def test_weights_that_do_not_fit_are_refused(weights: Path, tmp_path: Path) -> None:
    state = load_file(weights)
    missing = {name: tensor for name, tensor in state.items() if name != "blocks.0.attn.qkv.weight"}
    save_file(missing, tmp_path / "missing.safetensors")
    with pytest.raises(ValueError, match=r"missing\.safetensors does not fit.*test_vit.*blocks\.0\.attn\.qkv"):
        load_backbone(BACKBONE, tmp_path / "missing.safetensors", CPU)
    (tmp_path / "noise.safetensors").write_bytes(b"no weights at all")
    with pytest.raises(ValueError, match=r"noise\.safetensors does not fit"):
        load_backbone(BACKBONE, tmp_path / "noise.safetensors", CPU)


def test_code_in_a_weight_file_is_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"state_dict": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(ValueError, match=r"trap\.pth does not fit"):
        load_backbone(BACKBONE, tmp_path / "trap.pth", CPU)
    assert not (tmp_path / "ran").exists()


def test_without_weights_the_error_comes_fast_and_names_the_ways_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def no_network(*arguments: object, **named: object) -> None:
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setattr("sgdm.annotate.backbones.try_to_load_from_cache", lambda *arguments: None)
    start = time.monotonic()
    with pytest.raises(WeightsUnavailable, match=r"vit_small_patch16_224\.dino.*give its file.*self-supervised"):
        load_backbone("vit_small_patch16_224.dino", None, CPU)
    assert time.monotonic() - start < 15


def test_missing_file_and_unknown_name(tmp_path: Path) -> None:
    with pytest.raises(WeightsUnavailable, match=r"no weight file .*absent\.safetensors"):
        load_backbone(BACKBONE, tmp_path / "absent.safetensors", CPU)
    with pytest.raises(ValueError, match="timm has no backbone 'dino_of_dreams'"):
        load_backbone("dino_of_dreams", None, CPU)


def write_weights(name: str, path: Path, **changes: Tensor) -> dict[str, Tensor]:
    torch.manual_seed(1)
    state = timm.create_model(name, pretrained=False).state_dict() | changes
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, path)
    return state


def test_class_mean_and_any_layer_of_a_transformer(weights: Path) -> None:
    network = timm.create_model(BACKBONE, pretrained=False)
    network.load_state_dict(load_file(weights))
    network.eval()
    data = images(3, size=32)
    pixels = load_backbone(BACKBONE, weights, CPU).encoder_of(lambda pixels: pixels)(data)
    outputs: list[Tensor] = []
    with torch.no_grad():
        x = network.norm_pre(network.patch_drop(network._pos_embed(network.patch_embed(pixels))))
        for block in network.blocks:
            x = block(x)
            outputs.append(x)
    for layer in (-1, 2, -len(outputs)):
        normed = network.norm(outputs[layer])
        for token, expected in (("class", normed[:, 0]), ("mean", normed[:, 1:].mean(dim=1))):
            encoder = load_backbone(BACKBONE, weights, CPU, FeatureChoice(token=token, layer=layer))
            torch.testing.assert_close(encoder(data), expected, atol=1e-5, rtol=1e-5)
            assert encoder.dimension == 64


@pytest.mark.parametrize(("part", "third"), [("queries", 0), ("keys", 1), ("values", 2)])
def test_parts_of_attention_are_what_its_layer_computes(weights: Path, part: str, third: int) -> None:
    choice = FeatureChoice(token="mean", layer=3, part=part)  # type: ignore[arg-type]
    encoder = load_backbone(BACKBONE, weights, CPU, choice)
    projected: list[Tensor] = []
    data = images(2, size=32)
    pixels = encoder.encoder_of(lambda pixels: pixels)(data)
    encoder.network.blocks[3].attn.qkv.register_forward_hook(lambda module, inputs, output: projected.append(output))
    with torch.no_grad():
        encoder.network.forward_features(pixels)
    torch.testing.assert_close(encoder(data), projected[0].chunk(3, dim=2)[third][:, 1:].mean(dim=1))


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_efficientnet"])
def test_stages_of_convolutional_networks(name: str, tmp_path: Path) -> None:
    write_weights(name, tmp_path / "model.safetensors")
    for layer in (-1, 1):
        encoder = load_backbone(name, tmp_path / "model.safetensors", CPU, FeatureChoice(token="mean", layer=layer))
        maps = encoder.patches("tokens")
        assert encoder.probe(maps).shape[:2] == (1, encoder.dimension)
        assert encoder(images(2)).shape == (2, encoder.dimension)


def test_features_that_a_backbone_does_not_have_are_refused_by_name(weights: Path, tmp_path: Path) -> None:
    resnet = tmp_path / "resnet.safetensors"
    write_weights("test_resnet", resnet)
    for name, path, choice, message in (
        ("test_resnet", resnet, FeatureChoice(token="class"), "test_resnet has no class token: give"),
        ("test_resnet", resnet, FeatureChoice(token="mean", part="keys"), "test_resnet has no keys of attention"),
        (BACKBONE, weights, FeatureChoice(token="mean", layer=6), "test_vit has 6 layers, and no layer 6"),
        (BACKBONE, weights, FeatureChoice(layer=2), "layer 2 is not pooled"),
        (BACKBONE, weights, FeatureChoice(token="class", layer=0, part="keys"), "give a layer after the first"),
    ):
        with pytest.raises(ValueError, match=message):
            load_backbone(name, path, CPU, choice)
    with pytest.raises(ValueError, match="there are no pooled keys"):
        FeatureChoice(part="keys")
    with pytest.raises(ValueError, match="input_size is 4"):
        FeatureChoice(input_size=4)


def test_another_input_size_is_taken_and_stated(weights: Path) -> None:
    encoder = load_backbone(BACKBONE, weights, CPU, FeatureChoice(input_size=96))
    assert encoder.parameters["input_size"] == [96, 96] and "bicubic" in encoder.parameters["resize"]
    assert encoder.probe(encoder.patches("tokens")).shape == (1, 64, 6, 6)
    assert encoder(images(2)).shape == (2, 64)


def test_bf16_is_near_and_stated(weights: Path) -> None:
    data = images(4, size=32)
    exact = load_backbone(BACKBONE, weights, CPU)(data)
    encoder = load_backbone(BACKBONE, weights, CPU, bf16=True)
    assert encoder.parameters["arithmetic"] == "bfloat16"
    assert encoder(data).dtype == torch.float32
    assert F.cosine_similarity(encoder(data), exact).min() > 0.999


def test_a_compiled_encoder_sees_batches_of_one_size(weights: Path) -> None:
    shapes: list[tuple[int, ...]] = []

    def watched(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        graph = torch.compile(forward, backend="eager", fullgraph=True, dynamic=False)

        def call(pixels: Tensor) -> Tensor:
            shapes.append(tuple(pixels.shape))
            return graph(pixels)

        return call

    data = images(7, size=32)
    choice = FeatureChoice(token="mean", part="keys")
    plain = load_backbone(BACKBONE, weights, CPU, choice)
    encoder = load_backbone(BACKBONE, weights, CPU, choice, compiled=watched, batch_size=4)
    found = torch.cat([encoder(data[:4]), encoder(data[4:])])
    torch.testing.assert_close(found, plain(data), atol=1e-5, rtol=1e-5)
    assert shapes == [(4, 3, 160, 160)] * 2


def test_checkpoints_of_trainers_are_unwrapped(weights: Path, tmp_path: Path) -> None:
    """As DINO, MSN and MAE save them, beside heads and decoders."""
    state = {name: tensor for name, tensor in load_file(weights).items() if not name.startswith("head")}
    expected = load_backbone(BACKBONE, weights, CPU)(images(2))
    for key, prefix in (("teacher", "module.backbone."), ("target_encoder", "module."), ("model", "")):
        wrapped = {prefix + name: tensor for name, tensor in state.items()}
        wrapped |= {"module.head.mlp.0.weight": torch.zeros(3, 3), "decoder_embed.weight": torch.zeros(2, 2)}
        torch.save({key: wrapped, "epoch": 3}, tmp_path / "checkpoint.pth")
        assert torch.equal(load_backbone(BACKBONE, tmp_path / "checkpoint.pth", CPU)(images(2)), expected)


def test_a_deeper_backbone_is_not_cut_down(weights: Path, tmp_path: Path) -> None:
    state = load_file(weights)
    deeper = state | {
        name.replace("blocks.5.", "blocks.6."): t.clone() for name, t in state.items() if "blocks.5." in name
    }
    save_file(deeper, tmp_path / "deeper.safetensors")
    with pytest.raises(ValueError, match=r"deeper\.safetensors does not fit.*blocks\.6"):
        load_backbone(BACKBONE, tmp_path / "deeper.safetensors", CPU)
