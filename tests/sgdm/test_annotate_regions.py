from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sgdm.annotate.names import BoxFinder
from sgdm.annotate.regions import RegionClasses, cut_into_regions, mean_features, sample_regions
from sgdm.annotate.segments import fit_segments, segment_agreement

SIDE = 16


class Colours:
    """Patches of 4x4 pixels; the feature is their mean colour, from which that of the image may be taken."""

    name, digest, grid = "colours", "none", (SIDE, SIDE)

    def __init__(self, relative: bool) -> None:
        self._relative = relative

    def __call__(self, images: Tensor) -> Tensor:
        features = F.avg_pool2d(images.float() - 127, 4)
        return features - self._relative * features.mean(dim=(2, 3), keepdim=True)


def things(count: int) -> tuple[Tensor, np.ndarray]:
    """Squares whose halves differ, of two kinds, each on a background of one of two colours; labels of kinds."""
    random = np.random.default_rng(0)
    colours = np.array([[[250, 40, 40], [250, 40, 160]], [[40, 250, 40], [160, 250, 40]]])
    images = np.empty((count, 4 * SIDE, 4 * SIDE, 3))
    labels = np.full((count, 4 * SIDE, 4 * SIDE), 2)
    for image, label in zip(images, labels, strict=True):
        image[:] = ([60, 60, 200], [30, 90, 160])[random.integers(2)]
        kind, (x, y) = random.integers(2), 4 * random.integers(1, SIDE - 7, 2)
        image[y : y + 12, x : x + 24], image[y + 12 : y + 24, x : x + 24] = colours[kind]
        label[y : y + 24, x : x + 24] = kind
    images += random.normal(0, 5, images.shape)
    return torch.from_numpy(images.clip(0, 255).astype(np.uint8)).permute(0, 3, 1, 2), labels


@pytest.mark.parametrize("method", ["lost", "normalised-cut"])
def test_things_of_parts_are_found_whole(method: BoxFinder) -> None:
    images, labels = things(40)
    where, what = Colours(relative=True), Colours(relative=False)
    sample = sample_regions(where, what, images.split(16), method)
    centroids = torch.from_numpy(fit_segments(sample, 3, seed=0))
    scores = RegionClasses(where, what, method, centroids).scores(images, labels.shape[1:])
    found = scores.argmax(dim=1)
    confusion = np.array([[((found.numpy() == k) & (labels == c)).sum() for c in range(3)] for k in range(3)])
    mean_iou, accuracy = segment_agreement(confusion)
    assert mean_iou > 0.95 and accuracy > 0.97


def test_each_patch_is_in_one_region() -> None:
    features = torch.randn(6, 5, 9, 9, generator=torch.Generator().manual_seed(0))
    masks = cut_into_regions(features, "lost")
    assert (masks.sum(dim=1) == 1).all()
    means = mean_features(features, masks)
    assert not means[~masks.flatten(2).any(dim=2)].any()
    expected = F.normalize(features[0], dim=0)[:, masks[0, 0]].mean(dim=1)
    torch.testing.assert_close(means[0, 0], expected)


def test_no_images_are_refused() -> None:
    with pytest.raises(ValueError, match="no images"):
        sample_regions(Colours(True), Colours(False), [], "lost")
