from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sgdm.annotate import segments
from sgdm.annotate.segments import (
    PatchClasses,
    concatenate,
    fit_segments,
    sample_patches,
    segment_agreement,
    segments_of,
)
from sgdm.ragged import RunLengths, Views
from sgdm.raster import rasterize_labels


class Colours:
    """Patches of 4x4 pixels; the feature is their mean colour."""

    name, digest, grid = "colours", "none", (4, 4)

    def __call__(self, images: Tensor) -> Tensor:
        return F.avg_pool2d(images.float() - 127, 4)


def two_textures(count: int) -> tuple[Tensor, np.ndarray]:
    """Red and green noise, the border between them upright at a multiple of 4; labels [count, 16, 16]."""
    random = np.random.default_rng(0)
    labels = np.zeros((count, 16, 16), np.int64)
    for image in labels:
        image[:, 4 * random.integers(1, 4) :] = 1
    colours = np.array([[200, 60, 60], [60, 200, 60]])
    images = np.clip(colours[labels] + random.normal(0, 20, (count, 16, 16, 3)), 0, 255)
    return torch.from_numpy(images.astype(np.uint8)).permute(0, 3, 1, 2), labels


class _Given:
    """An encoder whose features are known."""

    name, digest, grid = "given", "none", (4, 6)

    def __init__(self, features: torch.Tensor) -> None:
        self._features = features

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return self._features


def drawn(objects: RunLengths, size: int, num_classes: int) -> np.ndarray:
    out = torch.empty(objects.num_images, size, size, dtype=torch.uint8)
    views = Views.of(np.full((objects.num_images, 2), size))
    return rasterize_labels(objects, views, out, num_classes=num_classes).numpy()


def test_two_textures_are_found_with_the_border_between_them() -> None:
    images, labels = two_textures(40)
    encoder = Colours()
    centroids = fit_segments(sample_patches(encoder, images.split(16), 40, seed=0), 2, seed=0)
    found = PatchClasses(encoder, torch.from_numpy(centroids)).scores(images, (16, 16)).argmax(dim=1).numpy()
    objects = concatenate([segments_of(found[:7]), segments_of(found[7:])])
    assert objects.compressed and objects.num_images == 40 and len(objects.class_ids) == 80
    np.testing.assert_array_equal(drawn(objects, 16, 2), found)
    confusion = np.array([[((found == k) & (labels == c)).sum() for c in range(2)] for k in range(2)])
    mean_iou, accuracy = segment_agreement(confusion)
    assert mean_iou > 0.95 and accuracy > 0.97


def test_a_pixels_class_is_that_of_the_interpolated_feature() -> None:
    generator = torch.Generator().manual_seed(0)
    features, centroids = torch.randn(3, 5, 4, 6, generator=generator), torch.randn(7, 5, generator=generator)
    pixels = F.normalize(F.interpolate(features, (20, 30), mode="bilinear"), dim=1)
    expected = torch.einsum("bdhw,kd->bkhw", pixels, centroids).argmax(dim=1)
    scores = PatchClasses(_Given(features), centroids).scores(torch.empty(3), (20, 30))
    assert torch.equal(scores.argmax(dim=1), expected)
    assert torch.allclose(scores.exp().sum(dim=1), torch.ones(3, 20, 30))


def test_a_sample_takes_as_many_patches_of_each_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "SAMPLE", 30)
    images = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1).expand(10, 3, 16, 16)
    sample = sample_patches(Colours(), images.split(4), 10, seed=0)
    assert np.unique(sample[:, 0] + 127, return_counts=True)[1].tolist() == [3] * 10
    assert len(sample_patches(Colours(), images[:1].split(4), 1, seed=0)) == 16  # an image has no more
    with pytest.raises(ValueError, match="no images"):
        sample_patches(Colours(), [], 0, seed=0)


def test_segments_hold_every_pixel_once() -> None:
    labels = np.random.default_rng(0).integers(0, 4, (5, 9, 9)) * 2
    labels[2] = 6
    objects = segments_of(labels)
    np.testing.assert_array_equal(drawn(objects, 9, 7), labels)
    assert objects.class_ids[slice(*objects.image_offsets[2:4])].tolist() == [6]


def test_agreement_pairs_classes_as_well_as_can_be() -> None:
    # Class 0 is found as 1 with 6 of 8 pixels, class 1 as 0 with 10 of 10.
    mean_iou, accuracy = segment_agreement(np.array([[2, 10], [6, 0]]))
    assert mean_iou == pytest.approx((6 / 8 + 10 / 12) / 2) and accuracy == pytest.approx(16 / 18)
    # More classes found than true: the third one's pixels agree with nothing.
    mean_iou, accuracy = segment_agreement(np.array([[4, 0], [0, 4], [2, 2]]))
    assert mean_iou == pytest.approx(4 / 6) and accuracy == pytest.approx(8 / 12)
    # Fewer: the class without a partner has IoU 0; one without any pixel does not count.
    mean_iou, accuracy = segment_agreement(np.array([[6, 2, 0]]))
    assert mean_iou == pytest.approx((6 / 8 + 0) / 2) and accuracy == pytest.approx(6 / 8)
