from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sgdm.annotate.crf import refine


def two_colours(count: int = 4, size: int = 32, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Red right of a random edge that leans, blue left of it, under a little noise: uint8 images, int64 labels."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    edges = size * (0.3 + 0.4 * torch.rand(count, generator=generator))
    labels = (x + 0.3 * y > edges[:, None, None]).long()
    colours = torch.tensor([[40.0, 60.0, 200.0], [210.0, 70.0, 50.0]])[labels].permute(0, 3, 1, 2)
    noise = torch.randn(count, 1, size, size, generator=generator)
    return (colours + noise).round().clamp(0, 255).to(torch.uint8), labels


def noisy_scores(labels: Tensor, num_classes: int, seed: int = 0) -> Tensor:
    """Log-probabilities that favour the right class of a pixel, or, at one in five pixels, any class."""
    generator = torch.Generator().manual_seed(seed)
    anything = torch.randint(num_classes, labels.shape, generator=generator)
    told = torch.where(torch.rand(labels.shape, generator=generator) < 0.2, anything, labels)
    return F.log_softmax(2.0 * F.one_hot(told, num_classes).permute(0, 3, 1, 2), dim=1)


def test_noise_goes_and_borders_snap_to_edges_of_colour() -> None:
    images, labels = two_colours()
    scores = noisy_scores(labels, 3)
    assert (scores.argmax(dim=1) == labels).float().mean() < 0.9
    refined = refine(images, scores)
    assert refined.dtype == torch.int64
    assert (refined == labels).float().mean() > 0.999
    # Scores that know a border only roughly, as those of patches do: 8 pixels wide.
    coarse = F.avg_pool2d(F.one_hot(labels, 2).permute(0, 3, 1, 2).float(), 8)
    rough = F.interpolate(coarse, (32, 32), mode="bilinear").clamp(0.05, 0.95).log()
    before, after = ((found == labels).float().mean() for found in (rough.argmax(dim=1), refine(images, rough)))
    assert after > 0.999 > before


def test_an_image_without_colours_to_follow_keeps_what_is_sure() -> None:
    images = torch.full((1, 3, 16, 16), 128, dtype=torch.uint8)
    labels = torch.zeros(1, 16, 16, dtype=torch.int64)
    assert torch.equal(refine(images, noisy_scores(labels, 2)), labels)
    assert torch.equal(refine(images, torch.zeros(1, 1, 16, 16)), labels)  # a single class


def test_an_image_is_refined_the_same_in_any_company() -> None:
    images, labels = two_colours(count=6)
    scores = noisy_scores(labels, 4)
    together = refine(images, scores)
    assert torch.equal(refine(images, scores), together)
    assert torch.equal(torch.cat([refine(images[n : n + 1], scores[n : n + 1]) for n in range(6)]), together)


def test_wide_images_keep_rows_and_columns_apart() -> None:
    images, labels = two_colours(size=40)
    images, labels = images[:, :, 4:20], labels[:, 4:20]
    channels_last = images.contiguous(memory_format=torch.channels_last)
    assert (refine(channels_last, noisy_scores(labels, 2)) == labels).float().mean() > 0.999


def test_no_images_are_no_labels() -> None:
    assert refine(torch.empty(0, 3, 8, 8, dtype=torch.uint8), torch.empty(0, 2, 8, 8)).shape == (0, 8, 8)


def test_what_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    images = two_colours()[0]
    with pytest.raises(ValueError, match=r"images are uint8 \[B, 3, H, W\]"):
        refine(images.permute(0, 2, 3, 1), torch.zeros(4, 2, 32, 32))
    with pytest.raises(ValueError, match=r"scores at the size of the images"):
        refine(images, torch.zeros(4, 2, 16, 16))
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    with pytest.raises(ValueError, match="install the extra `crf`"):
        refine(images, torch.zeros(4, 2, 32, 32))
