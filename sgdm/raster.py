"""Masks and boxes to condition tensors: the Python face of the C++ extension, and its NumPy twin."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

import sgdm._raster as _raster


def rasterize_boxes(boxes: NDArray[np.int32], height: int, width: int) -> NDArray[np.uint8]:
    """One mask an image, 1 inside its box.

    boxes: int32 [N, 4], (x0, y0, x1, y1) in pixels, half-open; parts off the image are cut off.
    Returns uint8 [N, height, width]. ValueError names the image whose box ends before it starts.
    """
    masks = np.empty((len(boxes), height, width), dtype=np.uint8)
    _raster.rasterize_boxes(np.ascontiguousarray(boxes, dtype=np.int32), masks)
    return masks


def rasterize_boxes_numpy(boxes: NDArray[np.int32], height: int, width: int) -> NDArray[np.uint8]:
    """The same by NumPy slices: the oracle of the tests."""
    masks = np.zeros((len(boxes), height, width), dtype=np.uint8)
    for mask, (x0, y0, x1, y1) in zip(masks, np.maximum(boxes, 0), strict=True):
        mask[y0:y1, x0:x1] = 1
    return masks
