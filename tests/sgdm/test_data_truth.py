"""Truth in the frame of the stored images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sgdm.data.beton import crop_and_resize
from sgdm.data.truth import Truth, centre_crops, stored_boxes, stored_segments
from sgdm.ragged import Boxes, Masks, Polygons, RunLengths, Views
from sgdm.raster import rasterize_channels, rasterize_mask


def truth_of(sizes: list[tuple[int, int]], boxes: Boxes, *segments: Polygons | RunLengths | Masks) -> Truth:
    return Truth(["cat", "dog"], np.array(sizes), boxes, segments)


@given(st.integers(1, 40), st.integers(1, 40))
def test_the_crop_is_the_one_of_the_stored_image(height: int, width: int) -> None:
    image = np.arange(height * width * 3, dtype=np.int64).astype(np.uint8).reshape(height, width, 3)
    x0, y0, x1, y1 = centre_crops(np.array([(height, width)]))[0].astype(int)
    np.testing.assert_array_equal(image[y0:y1, x0:x1], crop_and_resize(image, min(height, width)))


def test_boxes_are_cut_dropped_and_put_in_units_of_the_image() -> None:
    boxes = Boxes.of(
        [[(0, 0, 20, 10)], [(5, 0, 10, 5), (0, 0, 5, 10), (0, 2, 6, 4), (15, 0, 19, 10)], []], [[0], [1, 0, 1, 0], []]
    )
    truth = truth_of([(10, 10), (10, 20), (10, 10)], boxes)
    stored = stored_boxes(truth, np.array([1, 2, 0]))
    assert stored.image_offsets.tolist() == [0, 2, 2, 3] and stored.class_ids.tolist() == [1, 1, 0]
    np.testing.assert_allclose(stored.corners, [[0, 0, 0.5, 0.5], [0, 0.2, 0.1, 0.4], [0, 0, 1, 1]])


def test_boxes_of_the_stored_image_are_drawn_where_the_source_shows_them() -> None:
    truth = truth_of([(16, 24)], Boxes.of([[(6, 2, 14, 10)]]))
    image = np.zeros((16, 24, 3), np.uint8)
    image[2:10, 6:14] = 255
    mask = rasterize_mask(
        stored_boxes(truth, np.zeros(1, int)), Views.of([(1, 1)]), torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    )
    np.testing.assert_array_equal(mask[0, 0].numpy() > 0, crop_and_resize(image, 8)[:, :, 0] > 127)


def test_segments_of_several_kinds_are_joined_image_by_image() -> None:
    polygons = Polygons.of([[], [[(6, 0, 10, 0, 10, 8, 6, 8)]], [[(0, 0, 4, 0, 4, 4, 0, 4)]]], [[], [1], [0]])
    outside = np.zeros((8, 16), bool)
    outside[:, :3] = True
    inside = np.zeros((8, 16), bool)
    inside[2:6, 4:8] = True
    masks = Masks.of([[], [outside, inside], []], [[], [0, 0], []])
    truth = truth_of([(8, 8), (8, 16), (8, 8)], Boxes.of([[], [], []]), polygons, masks)
    stored = stored_segments(truth, np.array([2, 1]), image_size=4)
    assert stored.image_offsets.tolist() == [0, 1, 3] and stored.class_ids.tolist() == [0, 1, 0]
    assert stored.sizes.tolist() == [[4, 4]] * 3
    out = rasterize_channels(
        stored, Views.of([(4, 4)] * 2), torch.zeros(2, 2, 4, 4, dtype=torch.uint8), overlap="multi-hot"
    )
    expected = np.zeros((2, 2, 4, 4), int)
    expected[0, 0, :2, :2] = expected[1, 1, :, 1:3] = expected[1, 0, 1:3, :2] = 1
    np.testing.assert_array_equal(out.numpy(), expected)


@pytest.mark.parametrize("rows", [[], [0]])
def test_without_objects(rows: list[int]) -> None:
    truth = truth_of([(8, 8)], Boxes.of([[]]), Polygons.of([[]]), RunLengths.of([[]]))
    assert stored_boxes(truth, np.array(rows, int)).num_images == len(rows)
    assert stored_segments(truth, np.array(rows, int), 4).num_images == len(rows)
