from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from benchmarks import reference_boxes
from sgdm.annotate import objects as repetition
from sgdm.annotate.boxes import (
    boxes_around,
    concatenate,
    corloc,
    find_boxes,
    intersection_over_union,
    precision_and_recall,
)
from sgdm.annotate.lost import EXPANSION, Lost
from sgdm.annotate.objects import find_objects
from sgdm.ragged import Boxes


def per_image(boxes: Boxes) -> list[Any]:
    return [part.tolist() for part in np.split(boxes.corners, boxes.image_offsets[1:-1])]


def lost(features: np.ndarray, expansion: float, objects: int = 1) -> list[list[list[float]]]:
    """Of each image by itself, by the reference."""
    find = reference_boxes.lost(expansion, features[0, 0].size)
    return [reference_boxes.find_boxes(image, find, objects) for image in features]


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9)),
    levels=st.integers(1, 4),
    expansion=st.sampled_from([0.001, 1 / 12, 0.3, 1.0]),
    objects=st.integers(1, 4),
)
def test_the_batch_equals_the_reference_image_by_image(
    seed: int, shape: tuple[int, int, int], levels: int, expansion: float, objects: int
) -> None:
    # Whole numbers: every sum is exact, and equal degrees, zero features and zero sums are common.
    features = np.random.default_rng(seed).integers(-levels, levels + 1, (6, *shape)).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(repetition.FINDERS, "lost", lambda columns: Lost(columns, expansion))
        boxes = find_boxes(torch.from_numpy(features), "lost", objects)
    assert per_image(boxes) == lost(features, expansion, objects)


@pytest.mark.parametrize("objects", [1, 3])
def test_smooth_features_at_a_real_size(objects: int, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).normal(size=(20, 8, 16, 16))
    features = np.stack([ndimage.gaussian_filter(image, (0, 2, 2)) for image in noise])
    boxes = find_boxes(torch.from_numpy(features), "lost", objects)
    assert per_image(boxes) == lost(features, EXPANSION, objects)
    assert (len(boxes.corners) > 20) == (objects > 1)
    monkeypatch.setattr(repetition, "PAIRS", 3 * 256**2)  # in parts of three images
    parts = concatenate([find_boxes(torch.from_numpy(part), "lost", objects) for part in (features[:7], features[7:])])
    assert per_image(parts) == per_image(boxes)


@pytest.mark.parametrize("rows, columns", [((3, 7), (2, 5)), ((0, 4), (9, 12)), ((5, 6), (5, 6))])
def test_a_block_in_a_uniform_background_is_the_box(rows: tuple[int, int], columns: tuple[int, int]) -> None:
    features = torch.zeros(1, 2, 10, 12)
    features[:, 0] = 1
    features[:, :, slice(*rows), slice(*columns)] = torch.tensor([-0.5, 1.0]).view(2, 1, 1)
    expected = [columns[0] / 12, rows[0] / 10, columns[1] / 12, rows[1] / 10]
    assert find_boxes(features).corners == pytest.approx(np.array([expected]))


def test_only_the_part_that_holds_the_seed_counts() -> None:
    features = torch.ones(1, 1, 8, 8)
    features[:, :, 1:4, 1:4] = -1
    features[:, :, 4, 4] = -1  # touches it at a corner only
    features[:, :, 6:, 2:] = -1
    assert find_boxes(features).corners.tolist() == [[1 / 8, 1 / 8, 4 / 8, 4 / 8]]


def test_the_winding_part_is_followed_to_its_end() -> None:
    picture = ["#####", "....#", "#####", "#....", "#####", ".....", "....."]
    features = torch.tensor([[[[1.0 if cell == "." else -1.0 for cell in row] for row in picture]]])
    features[features > 0] = 2  # more patches in the background would be as well
    background = torch.full((1, 1, 7, 5), 1.0)
    features = torch.cat([features, background], dim=3)
    assert find_boxes(features).corners.tolist() == [[0, 0, 0.5, 5 / 7]]


def test_an_image_of_one_feature_is_all_object_and_one_of_none_a_patch() -> None:
    assert find_boxes(torch.ones(1, 3, 4, 4)).corners.tolist() == [[0, 0, 1, 1]]
    assert find_boxes(torch.zeros(1, 3, 4, 4)).corners.tolist() == [[0, 0, 0.25, 0.25]]


@pytest.mark.parametrize("method", ["lost", "normalised-cut"])
def test_objects_are_found_one_after_another(method: repetition.Method) -> None:
    features = torch.zeros(1, 3, 12, 12)
    features[:, 0] = 1
    features[:, :, 1:4, 2:6] = torch.tensor([-0.5, 1.0, 0.0]).view(3, 1, 1)  # the smaller one
    features[:, :, 7:11, 5:10] = torch.tensor([-0.5, 0.0, 1.0]).view(3, 1, 1)
    masks = find_objects(features, method, 3)[0]
    found = {tuple(box) for box in per_image(boxes_around(masks[None]))[0]}
    assert found == {(2 / 12, 1 / 12, 6 / 12, 4 / 12), (5 / 12, 7 / 12, 10 / 12, 11 / 12)}  # the rest is background
    assert not (masks.sum(dim=0) > 1).any()


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), size=st.tuples(st.integers(1, 14), st.integers(1, 14)), share=st.floats(0.3, 1))
def test_what_hangs_together_with_a_patch(seed: int, size: tuple[int, int], share: float) -> None:
    random = np.random.default_rng(seed)
    masks = random.random((5, *size)) < share
    seeds = random.integers(0, masks[0].size, 5)
    starts = np.zeros_like(masks)
    starts.reshape(5, -1)[range(5), seeds] = True
    starts[0] = False  # an image of which nothing is left
    starts &= masks
    reached = repetition._connected(torch.from_numpy(masks), torch.from_numpy(starts)).numpy()
    for mask, start, found in zip(masks, starts, reached, strict=True):
        parts = ndimage.label(mask)[0]
        np.testing.assert_array_equal(found, (parts == parts[start][0]) if start.any() else start)


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


def test_a_box_found_twice_is_true_once() -> None:
    square = [0, 0, 0.5, 0.5]
    truth = Boxes.of([[square, [0.5, 0.5, 1, 1]], [square], [], [square]])
    found = Boxes.of([[square, [0, 0, 0.5, 0.6], [0, 0, 0.1, 0.1]], [[0.5, 0, 1, 0.5]], [square], []])
    assert precision_and_recall(found, truth) == (1 / 5, 1 / 4)
    precision, recall = precision_and_recall(Boxes.of([[]]), Boxes.of([[]]))
    assert np.isnan(precision) and np.isnan(recall)


def test_boxes_are_paired_so_that_most_of_them_are_true() -> None:
    # The first box found meets both true ones, the second one of them: in turn, the first would take the second's.
    truth = Boxes.of([[[0, 0, 1, 0.5], [0, 0, 1, 1]]])
    found = Boxes.of([[[0, 0, 1, 0.6], [0, 0, 1, 0.3]]])
    assert precision_and_recall(found, truth) == (1, 1)
