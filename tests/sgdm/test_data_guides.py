"""Guides looked up and drawn by row, and made one batch ahead."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from sgdm.data.guides import NO_CLASS, Guides, one_ahead
from sgdm.ragged import Boxes, Masks, Polygons, Views
from sgdm.raster import encode


def guides(clusters: object = None, layout: object = None, num_segments: int = 0) -> Guides:
    return Guides(clusters, layout, image_size=8, num_segments=num_segments, device="cpu")


def test_clusters_are_looked_up_by_row() -> None:
    drawn = guides(np.array([5, 6, 7], dtype=np.int32)).draw(np.array([2, 0]))
    assert drawn.cluster.tolist() == [7, 5] and drawn.cluster.dtype == torch.int64
    assert drawn.layout is None


def test_boxes_of_the_rows_are_drawn_at_the_size_of_the_network() -> None:
    boxes = Boxes.of([[[0, 0, 0.5, 0.5]], [[0.25, 0.5, 1, 1]], []])
    drawn = guides(layout=boxes).draw(np.array([1, 2, 0]))
    expected = np.zeros((3, 1, 8, 8), np.uint8)
    expected[0, 0, 4:, 2:] = 1
    expected[2, 0, :4, :4] = 1
    np.testing.assert_array_equal(drawn.layout.numpy(), expected)


def test_segments_of_the_rows_are_label_maps() -> None:
    top, left = np.zeros((16, 16), bool), np.zeros((16, 16), bool)
    top[:8], left[:, :8] = True, True
    masks = Masks.of([[top], [left, top]], [[3], [0, 2]])
    segments = encode(masks, Views.of([[16, 16], [16, 16]]), size=(16, 16))
    drawn = guides(layout=segments, num_segments=4).draw(np.array([1, 0]))
    expected = np.full((2, 8, 8), NO_CLASS)
    expected[0, :, :4] = 0
    expected[0, :4] = 2  # the later one
    expected[1, :4] = 3
    np.testing.assert_array_equal(drawn.layout.numpy(), expected)


def test_polygons_are_in_units_of_the_image() -> None:
    square = Polygons.of([[[[0, 0, 1, 0, 1, 0.5, 0, 0.5]]]], [[1]])
    drawn = guides(layout=square, num_segments=2).draw(np.array([0]))
    assert drawn.layout[0, :4].eq(1).all() and drawn.layout[0, 4:].eq(NO_CLASS).all()


def test_items_come_in_order_and_one_is_made_ahead() -> None:
    made = []

    def items() -> Iterator[int]:
        for number in range(5):
            made.append(number)
            yield number

    ahead = one_ahead(items())
    assert next(ahead) == 0
    deadline = time.monotonic() + 5
    while len(made) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(made) >= 2  # while the first is in use
    assert list(ahead) == [1, 2, 3, 4]


def test_a_failure_is_raised_where_the_item_is_asked_for() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("a torn page")

    ahead = one_ahead(items())
    assert next(ahead) == 1
    with pytest.raises(ValueError, match="a torn page"):
        next(ahead)


def test_who_stops_early_leaves_no_thread_and_closes_the_items() -> None:
    closed = threading.Event()

    def items() -> Iterator[int]:
        try:
            number = 0
            while True:
                yield number
                number += 1
        finally:
            closed.set()

    before = threading.active_count()
    ahead = one_ahead(items())
    assert next(ahead) == 0
    ahead.close()
    assert closed.is_set() and threading.active_count() == before
