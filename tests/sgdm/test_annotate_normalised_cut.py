from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import linalg, ndimage

from benchmarks import reference_boxes
from sgdm.annotate.boxes import find_boxes
from sgdm.annotate.normalised_cut import THRESHOLD, NormalisedCut


def smooth(images: int, size: int, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(images, 6, size, size))
    return np.stack([ndimage.gaussian_filter(image, (0, 2, 2)) for image in noise])


@pytest.mark.parametrize("share_left", [1.0, 0.5])
def test_the_eigenvector_is_that_of_lapack(share_left: float) -> None:
    features = torch.from_numpy(smooth(8, 14)).float().flatten(2)
    left = torch.rand(8, 196, generator=torch.Generator().manual_seed(0)) < share_left
    found = NormalisedCut(features).eigenvector(left).double().numpy()
    assert not found[~left.numpy()].any()
    for column, kept, y in zip(features.double().numpy(), left.numpy(), found, strict=True):
        unit = column[:, kept] / np.linalg.norm(column[:, kept], axis=0)
        weights = np.where(unit.T @ unit >= THRESHOLD, 1.0, 1e-5)
        degrees = np.diag(weights.sum(axis=1))
        expected = linalg.eigh(degrees - weights, degrees)[1][:, 1]
        cosine = expected @ degrees @ y[kept] / np.sqrt(y[kept] @ degrees @ y[kept])
        assert abs(cosine) > 1 - 1e-5


@pytest.mark.parametrize("objects", [1, 3])
def test_the_batch_equals_the_reference_image_by_image(objects: int) -> None:
    features = smooth(30, 14, seed=1)
    boxes = find_boxes(torch.from_numpy(features).float(), "normalised-cut", objects)
    find = reference_boxes.normalised_cut(THRESHOLD)
    expected = [reference_boxes.find_boxes(image, find, objects) for image in features]
    found = [part.tolist() for part in np.split(boxes.corners, boxes.image_offsets[1:-1])]
    assert found == expected
    assert (len(boxes.corners) > 30) == (objects > 1)


def test_an_image_without_contrast_is_all_object() -> None:
    assert find_boxes(torch.ones(2, 3, 4, 4), "normalised-cut", 3).corners.tolist() == [[0, 0, 1, 1]] * 2
    assert find_boxes(torch.zeros(2, 3, 1, 1), "normalised-cut", 3).corners.tolist() == [[0, 0, 1, 1]] * 2
