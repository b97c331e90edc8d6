"""What a source says of the objects in its images. It is for comparison only: nothing trains on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from sgdm.data.sources import Source
from sgdm.ragged import Boxes, Objects, RunLengths, Views
from sgdm.raster import encode


class Truth(NamedTuple):
    """Objects of all images of a source, in its order and in the pixels of its images."""

    class_names: Sequence[str]
    sizes: np.ndarray  # int64 [N, 2], height and width of the images
    boxes: Boxes  # of single objects, half-open
    segments: tuple[Objects, ...]  # one kind of objects after another, each over all images


@runtime_checkable
class AnnotatedSource(Source, Protocol):
    """A source that knows where things are in its images."""

    def truth(self) -> Truth:
        """ValueError names the file and the entry that cannot be understood."""
        ...


def stored_boxes(truth: Truth, rows: np.ndarray) -> Boxes:
    """Boxes from 0 to 1 of the stored images, cropped and resized as sgdm.data.beton does.

    `rows`, int64 [count], are the numbers of the source's images that are stored, in order (beton.stored_rows). Of a
    box that the crop cuts the rest is kept; one of which nothing is left is dropped.
    """
    crops = centre_crops(truth.sizes)
    boxes = []
    class_ids = []
    for row in rows:
        objects = slice(*truth.boxes.image_offsets[row : row + 2])
        start, side = crops[row, :2], crops[row, 2] - crops[row, 0]
        corners = ((truth.boxes.corners[objects] - np.tile(start, 2)) / side).clip(0, 1)
        kept = (corners[:, 2:] > corners[:, :2]).all(axis=1)
        boxes.append(corners[kept])
        class_ids.append(truth.boxes.class_ids[objects][kept])
    return Boxes.of(boxes, class_ids)


def stored_segments(truth: Truth, rows: np.ndarray, image_size: int) -> RunLengths:
    """Segments of the stored images, as stored_boxes; those of which no pixel is left are dropped."""
    views = Views.of(truth.sizes[rows], centre_crops(truth.sizes)[rows])
    images: list[list[dict[str, Any]]] = [[] for _ in rows]
    class_ids: list[list[int]] = [[] for _ in rows]
    for objects in truth.segments:
        drawn = encode(objects, views, size=(image_size, image_size), images=rows)
        runs = np.diff(drawn.uncompress().offsets)
        segments = drawn.segments()
        for number, (begin, end) in enumerate(zip(drawn.image_offsets[:-1], drawn.image_offsets[1:], strict=True)):
            kept = [i for i in range(begin, end) if runs[i] > 1]  # an empty mask is one run of zeros
            images[number] += [segments[i] for i in kept]
            class_ids[number] += drawn.class_ids[kept].tolist()
    return RunLengths.of(images, class_ids)


def centre_crops(sizes: np.ndarray) -> np.ndarray:
    """float64 [N, 4], the x0 y0 x1 y1 that sgdm.data.beton.crop_and_resize keeps of images of int64 [N, 2] sizes."""
    side = sizes.min(axis=1, keepdims=True)
    start = (sizes - side)[:, ::-1] // 2
    return np.concatenate([start, start + side], axis=1).astype(np.float64)
