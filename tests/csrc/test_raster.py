from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from sgdm import _raster
from sgdm.raster import rasterize_boxes, rasterize_boxes_numpy

coordinates = st.integers(-40, 80)
boxes = st_numpy.arrays(np.int32, st.tuples(st.integers(0, 8), st.just(4)), elements=coordinates).map(
    lambda corners: np.sort(corners.reshape(-1, 2, 2), axis=1).reshape(-1, 4)
)


@given(boxes, st.integers(0, 48), st.integers(0, 48))
def test_equals_numpy_slices(boxes: np.ndarray, height: int, width: int) -> None:
    np.testing.assert_array_equal(rasterize_boxes(boxes, height, width), rasterize_boxes_numpy(boxes, height, width))


def test_half_open() -> None:
    mask = rasterize_boxes(np.array([[1, 1, 4, 4]]), 6, 6)
    assert mask.sum() == 9
    assert mask[0, 1, 1] == 1 and mask[0, 4, 4] == 0


def test_names_the_image_of_a_reversed_box() -> None:
    with pytest.raises(ValueError, match="image 1 ends before it starts: x0=5"):
        rasterize_boxes(np.array([[0, 0, 2, 2], [5, 0, 2, 2]]), 8, 8)


@pytest.mark.parametrize(
    ("boxes", "masks", "message"),
    [
        (np.zeros((2, 3), np.int32), np.zeros((2, 4, 4), np.uint8), r"boxes must be int32 \[N, 4\]"),
        (np.zeros((2, 4), np.int32), np.zeros((3, 4, 4), np.uint8), r"N = 2"),
    ],
)
def test_refuses_wrong_shapes(boxes: np.ndarray, masks: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _raster.rasterize_boxes(boxes, masks)


def test_never_writes_into_a_silent_copy() -> None:
    with pytest.raises(TypeError):
        _raster.rasterize_boxes(np.zeros((1, 4), np.int32), np.zeros((1, 4, 8), np.uint8)[:, :, ::2])
