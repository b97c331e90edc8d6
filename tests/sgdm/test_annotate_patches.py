from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch.nn import functional as F

from sgdm.annotate.backbones import load_backbone
from sgdm.annotate.boxes import corloc, find_boxes
from sgdm.annotate.patches import patch_encoder, whiten
from sgdm.annotate.selfsup import OwnEncoder, centred, fit_whitened_pixels, train_encoder

CPU = torch.device("cpu")


def squares(count: int) -> tuple[torch.Tensor, list[np.ndarray]]:
    """A patterned square somewhere on a gradient between two random colours, and its box."""
    random = np.random.default_rng(0)
    images = np.empty((count, 64, 64, 3))
    boxes = []
    ramp = np.linspace(0, 1, 64)[:, None]
    for image in images:
        first, second = random.uniform(60, 255, (2, 3))
        image[:] = first + (second - first) * ramp
        x, y, side = random.integers(0, 36), random.integers(0, 36), 28
        image[y : y + side, x : x + side] = random.uniform(0, 255, 3)
        image[y : y + side, x : x + side][::4] = 0
        boxes.append(np.array([[x, y, x + side, y + side]]) / 64)
    images += random.normal(0, 4, images.shape)
    return torch.from_numpy(np.clip(images, 0, 255).astype(np.uint8)).permute(0, 3, 1, 2).contiguous(), boxes


@pytest.fixture(scope="module")
def own() -> OwnEncoder:
    return train_encoder(squares(128)[0], seed=0, images_budget=1024, device=CPU)


@pytest.fixture(scope="module")
def transformer() -> OwnEncoder:
    return train_encoder(squares(128)[0], network="vit", seed=0, images_budget=256, device=CPU)


def test_keys_and_tokens_of_a_transformer_without_its_class_token(tmp_path: Path, transformer: OwnEncoder) -> None:
    torch.manual_seed(0)
    network = timm.create_model("test_vit", pretrained=False).eval()
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    of_timm = load_backbone("test_vit", tmp_path / "model.safetensors", CPU)
    images = squares(2)[0]
    for encoder, pixels, side, finish in (
        (of_timm, of_timm.encoder_of(lambda pixels: pixels)(images), 10, lambda features: features),
        (transformer, centred(images), 16, whiten),
    ):
        keys, tokens = keys_and_tokens(encoder.network, pixels)
        for kind, rows in (("boxes", keys), ("segments", tokens)):
            patches = patch_encoder(encoder, kind)
            features = patches(images)
            assert patches.digest == encoder.digest and patches.grid == (side, side)
            # Row-major: the second patch is right of the first, after one class token.
            expected = finish(rows[:, 1:].transpose(1, 2).reshape(2, -1, side, side))
            assert features.shape[2:] == (side, side) and features.dtype == torch.float32
            torch.testing.assert_close(features[:, : expected.shape[1]], expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def keys_and_tokens(network: VisionTransformer, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """From what the last attention layer is given, by the part of its weights that makes keys."""
    captured: list[torch.Tensor] = []
    attention = network.blocks[-1].attn
    hook = attention.qkv.register_forward_pre_hook(lambda module, inputs: captured.append(inputs[0]))
    tokens = network.forward_features(pixels)
    hook.remove()
    D = tokens.shape[2]
    return captured[0] @ attention.qkv.weight[D : 2 * D].T + attention.qkv.bias[D : 2 * D], tokens


@pytest.mark.parametrize("kind", ["boxes", "segments"])
def test_patches_of_our_convnet(own: OwnEncoder, kind: str) -> None:
    patches = patch_encoder(own, kind)
    images = squares(8)[0]
    features = patches(images)
    assert features.shape[0] == 8 and features.shape[2:] == patches.grid == (16, 16)
    assert features.dtype == torch.float32 and patches.digest == own.digest
    torch.testing.assert_close(torch.cat([patches(images[:3]), patches(images[3:])]), features, atol=1e-4, rtol=1e-3)


def test_the_border_of_an_image_is_no_texture(own: OwnEncoder) -> None:
    image = torch.full((1, 3, 64, 64), 200, dtype=torch.uint8)
    image[:, :, 28:36, 28:36] = 20
    features = patch_encoder(own, "boxes")(image)[0]
    torch.testing.assert_close(features[:, 0, 0], features[:, 2, 2], atol=1e-4, rtol=1e-4)


def test_backgrounds_of_any_colour_are_of_one_direction(own: OwnEncoder) -> None:
    """What a background has in common with others, and not with the square on it."""
    images, boxes = squares(32)
    features = F.normalize(patch_encoder(own, "segments")(images), dim=1)
    centre = (np.arange(16) + 0.5) / 16
    inside = np.stack(
        [
            np.outer((centre > y0) & (centre < y1), (centre > x0) & (centre < x1))
            for x0, y0, x1, y1 in np.concatenate(boxes)
        ]
    )
    shared = features[:, -1].numpy()
    assert shared[~inside].mean() > shared[inside].mean() + 0.01


def test_lost_finds_squares_on_gradients(own: OwnEncoder) -> None:
    images, boxes = squares(64)
    found = find_boxes(patch_encoder(own, "boxes")(images)).corners
    centred = np.tile([0.25, 0.25, 0.75, 0.75], (64, 1))
    assert corloc(found, boxes) > corloc(centred, boxes) + 0.25


def test_an_encoder_without_patches_is_refused() -> None:
    encoder = fit_whitened_pixels(squares(64)[0], seed=0, device=CPU)
    with pytest.raises(ValueError, match=r"pixels has no features of patches.*self-supervised"):
        patch_encoder(encoder, "boxes")


def test_whitening_evens_out_the_patches_of_each_image() -> None:
    features = torch.randn(2, 6, 16, 16, generator=torch.Generator().manual_seed(0))
    features[:, 1] += 30 * features[:, 0]
    features[1] *= 1000  # a scale of one image changes nothing but by its last bits
    before, after = (
        torch.linalg.eigvalsh(torch.stack([image.flatten(1).cov(correction=0) for image in both]))
        for both in (features, whiten(features))
    )
    assert whiten(features).mean(dim=(2, 3)).abs().max() < 1e-4
    torch.testing.assert_close(after, before / (before + 0.01 * before.sum(dim=1, keepdim=True)), atol=1e-3, rtol=1e-2)
    assert whiten(torch.ones(1, 3, 4, 4)).abs().max() == 0
