from __future__ import annotations

import socket
import time
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from sgdm.annotate.features import WeightsUnavailable, extract, load_backbone

BACKBONE = "test_vit"  # timm's own small network for tests
CPU = torch.device("cpu")


class Mean:
    """An encoder of three numbers: the mean of each channel."""

    name, digest, dimension = "mean", "none", 3

    def __call__(self, images: Tensor) -> Tensor:
        return images.float().mean((2, 3))


def batches(images: Tensor, order: Tensor, size: int = 4) -> list[tuple[Tensor, Tensor]]:
    return [(images[index], index) for index in order.split(size)]


def images(count: int, size: int = 8) -> Tensor:
    return torch.randint(0, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file(timm.create_model(BACKBONE, pretrained=False).state_dict(), path)
    return path


def test_extract_equals_direct_encoding_in_any_order(tmp_path: Path) -> None:
    data = images(10)
    done: list[int] = []
    extract(Mean(), batches(data, torch.randperm(10)), 10, tmp_path / "features.npy", done.append)
    features = np.load(tmp_path / "features.npy", allow_pickle=False)
    assert features.dtype == np.float16
    assert np.array_equal(features, Mean()(data).half().numpy())
    assert done == [4, 4, 2]


def test_features_that_are_not_finite_are_refused_by_image(tmp_path: Path) -> None:
    class Broken(Mean):
        def __call__(self, images: Tensor) -> Tensor:
            features = super().__call__(images)
            features[1] = torch.tensor([0.0, float("nan"), 0.0])
            features[2] = 1e6  # finite, but not in float16
            return features

    with pytest.raises(ValueError, match=r"mean gives features.*images 1, 2:"):
        extract(Broken(), batches(images(4), torch.arange(4)), 4, tmp_path / "features.npy")
    assert not list(tmp_path.iterdir())


def test_images_that_never_came_are_named_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 of 10 images never came to be encoded: 8, 9;"):
        extract(Mean(), batches(images(10), torch.arange(8)), 10, tmp_path / "features.npy")
    assert not list(tmp_path.iterdir())


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
    monkeypatch.setattr("sgdm.annotate.features.try_to_load_from_cache", lambda *arguments: None)
    start = time.monotonic()
    with pytest.raises(WeightsUnavailable, match=r"vit_small_patch16_224\.dino.*give its file.*self-supervised"):
        load_backbone("vit_small_patch16_224.dino", None, CPU)
    assert time.monotonic() - start < 15


def test_missing_file_and_unknown_name(tmp_path: Path) -> None:
    with pytest.raises(WeightsUnavailable, match=r"no weight file .*absent\.safetensors"):
        load_backbone(BACKBONE, tmp_path / "absent.safetensors", CPU)
    with pytest.raises(ValueError, match="timm has no backbone 'dino_of_dreams'"):
        load_backbone("dino_of_dreams", None, CPU)
