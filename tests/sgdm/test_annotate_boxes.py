from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from sgdm.annotate.boxes import corloc, find_boxes, intersection_over_union


def lost(features: np.ndarray, expansion: float) -> list[float]:
    """LOST of one image [D, h, w], patch by patch."""
    _, h, w = features.shape
    rows = features.reshape(len(features), -1).T
    similarity = rows @ rows.T
    degree = (similarity > 0).sum(axis=1)
    rarest = sorted(range(h * w), key=lambda patch: (degree[patch], patch))
    seed = rarest[0]
    candidates = rarest[: max(1, round(expansion * h * w))]
    expanded = {seed, *(patch for patch in candidates if similarity[seed, patch] > 0)}
    mask = similarity[sorted(expanded)].sum(axis=0) > 0
    mask[seed] = True
    parts, _ = ndimage.label(mask.reshape(h, w))  # over sides, not corners
    rows, columns = ndimage.find_objects(parts)[parts.flat[seed] - 1]
    return [columns.start / w, rows.start / h, columns.stop / w, rows.stop / h]


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9)),
    levels=st.integers(1, 4),
    expansion=st.sampled_from([0.001, 1 / 12, 0.3, 1.0]),
)
def test_the_batch_equals_the_reference_image_by_image(
    seed: int, shape: tuple[int, int, int], levels: int, expansion: float
) -> None:
    # Whole numbers: every sum is exact, and equal degrees, zero features and zero sums are common.
    features = np.random.default_rng(seed).integers(-levels, levels + 1, (6, *shape)).astype(np.float32)
    boxes = find_boxes(torch.from_numpy(features), expansion)
    assert boxes.tolist() == [lost(image, expansion) for image in features]


def test_smooth_features_at_a_real_size() -> None:
    random = np.random.default_rng(0)
    noise = random.normal(size=(20, 8, 16, 16))
    features = np.stack([ndimage.gaussian_filter(image, (0, 2, 2)) for image in noise])
    boxes = find_boxes(torch.from_numpy(features))
    assert boxes.tolist() == [lost(image, 1 / 12) for image in features]
    assert torch.equal(boxes, torch.cat([find_boxes(torch.from_numpy(image[None])) for image in features]))


@pytest.mark.parametrize("rows, columns", [((3, 7), (2, 5)), ((0, 4), (9, 12)), ((5, 6), (5, 6))])
def test_a_block_in_a_uniform_background_is_the_box(rows: tuple[int, int], columns: tuple[int, int]) -> None:
    features = torch.zeros(1, 2, 10, 12)
    features[:, 0] = 1
    features[:, :, slice(*rows), slice(*columns)] = torch.tensor([-0.5, 1.0]).view(2, 1, 1)
    expected = [columns[0] / 12, rows[0] / 10, columns[1] / 12, rows[1] / 10]
    assert find_boxes(features).tolist() == [pytest.approx(expected)]


def test_only_the_part_that_holds_the_seed_counts() -> None:
    features = torch.ones(1, 1, 8, 8)
    features[:, :, 1:4, 1:4] = -1
    features[:, :, 4, 4] = -1  # touches it at a corner only
    features[:, :, 6:, 2:] = -1
    assert find_boxes(features).tolist() == [[1 / 8, 1 / 8, 4 / 8, 4 / 8]]


def test_the_winding_part_is_followed_to_its_end() -> None:
    picture = ["#####", "....#", "#####", "#....", "#####", ".....", "....."]
    features = torch.tensor([[[[1.0 if cell == "." else -1.0 for cell in row] for row in picture]]])
    features[features > 0] = 2  # more patches in the background would be as well
    background = torch.full((1, 1, 7, 5), 1.0)
    features = torch.cat([features, background], dim=3)
    assert find_boxes(features).tolist() == [[0, 0, 0.5, 5 / 7]]


def test_an_image_of_one_feature_is_all_object_and_one_of_none_a_patch() -> None:
    assert find_boxes(torch.ones(1, 3, 4, 4)).tolist() == [[0, 0, 1, 1]]
    assert find_boxes(torch.zeros(1, 3, 4, 4)).tolist() == [[0, 0, 0.25, 0.25]]


def test_intersection_over_union_of_half_open_boxes() -> None:
    others = np.array([[0, 0, 2, 2], [1, 1, 3, 3], [2, 0, 4, 2], [0.5, 0.5, 1.5, 1.5], [1, 1, 1, 1]])
    assert intersection_over_union(np.array([0, 0, 2, 2]), others) == pytest.approx([1, 1 / 7, 0, 1 / 4, 0])


def test_corloc_counts_images_whose_box_meets_some_true_one() -> None:
    truth = [
        np.array([[0.6, 0.6, 1, 1], [0, 0, 0.5, 0.5]]),  # the second one is met
        np.array([[0, 0, 0.5, 0.5]]),  # IoU 1/2: just enough
        np.array([[0.5, 0.5, 1, 1]]),  # missed
        np.zeros((0, 4)),  # no object: does not count
    ]
    boxes = np.array([[0, 0, 0.5, 0.5], [0, 0, 0.5, 1], [0, 0, 0.5, 0.5], [0, 0, 1, 1]])
    assert corloc(boxes, truth) == pytest.approx(2 / 3)
    assert np.isnan(corloc(boxes[3:], truth[3:]))
