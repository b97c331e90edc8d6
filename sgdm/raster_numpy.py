"""sgdm.raster in plain NumPy, to read and to test against: the same bytes from valid input, much slower.

Functions return new arrays instead of filling tensors, and are told the size (height, width). Input is not checked.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sgdm.ragged import Boxes, LabelMaps, Masks, Objects, Polygons, RunLengths, Sampling, Views

BoolMask = NDArray[np.bool_]
Size = tuple[int, int]


def rasterize_labels(
    annotations: Objects | LabelMaps,
    views: Views,
    size: Size,
    *,
    background: int = 255,
    overlap: str = "last",
    images: ArrayLike | None = None,
) -> NDArray[np.uint8]:
    """uint8 [B, H, W]."""
    labels = _classes_of_pixels(annotations, views, size, overlap, images)
    return np.where(labels < 0, background, labels).astype(np.uint8)


def rasterize_channels(
    annotations: Objects | LabelMaps,
    views: Views,
    size: Size,
    *,
    num_classes: int,
    overlap: str = "last",
    images: ArrayLike | None = None,
) -> NDArray[np.uint8]:
    """uint8 [B, K, H, W]."""
    if overlap != "multi-hot" or isinstance(annotations, LabelMaps):
        labels = _classes_of_pixels(annotations, views, size, overlap, images)
        return (labels[:, None] == np.arange(num_classes)[:, None, None]).astype(np.uint8)
    channels = np.zeros((len(views.sizes), num_classes, *size), np.uint8)
    for planes, (masks, class_ids) in zip(channels, _images(annotations, views, size, images), strict=True):
        for mask, class_id in zip(masks, class_ids, strict=True):
            planes[class_id][mask] = 1
    return channels


def rasterize_mask(
    annotations: Objects | LabelMaps, views: Views, size: Size, *, images: ArrayLike | None = None
) -> NDArray[np.uint8]:
    """uint8 [B, 1, H, W]."""
    return (_classes_of_pixels(annotations, views, size, "last", images) >= 0).astype(np.uint8)[:, None]


def rasterize_presence(
    annotations: Objects | LabelMaps,
    views: Views,
    size: Size,
    *,
    num_classes: int,
    images: ArrayLike | None = None,
) -> NDArray[np.uint8]:
    """uint8 [B, K]."""
    channels = rasterize_channels(annotations, views, size, num_classes=num_classes, overlap="multi-hot", images=images)
    return channels.max(axis=(2, 3))


def encode_mask(mask: NDArray[Any]) -> bytes:
    """COCO's compressed run lengths of a mask [H, W]."""
    pixels = np.concatenate([[False], np.asarray(mask, bool).ravel(order="F")])
    changes = np.flatnonzero(pixels[1:] != pixels[:-1])
    return write_counts(np.diff(np.concatenate([[0], changes, [mask.size]])).tolist())


def write_counts(counts: list[int]) -> bytes:
    """From the fourth on the difference to the count two places before; base 32, the low digits first."""
    text = bytearray()
    for number, count in enumerate(counts):
        value = count - (counts[number - 2] if number > 2 else 0)
        while True:
            digit, value = value & 31, value >> 5
            more = value != (-1 if digit & 16 else 0)
            text.append(digit + (32 if more else 0) + ord("0"))
            if not more:
                break
    return bytes(text)


def read_counts(text: bytes) -> list[int]:
    """The counts that write_counts wrote."""
    counts: list[int] = []
    value = shift = 0
    for character in text:
        digit = character - ord("0")
        value |= (digit & 31) << shift
        shift += 5
        if not digit & 32:
            value -= (digit >> 4 & 1) << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return counts


class _View(NamedTuple):
    source: Size
    crop: NDArray[np.float64]  # x0 y0 x1 y1
    flip: bool
    sampling: Sampling
    size: Size  # of the target

    def sample(self, image: NDArray[Any]) -> NDArray[Any]:
        """What the view shows of an array [height, width] of the source's size."""
        x0, y0, x1, y1 = self.crop
        rows = _sample(y0, y1, self.source[0], self.size[0], self.sampling)
        columns = _sample(x0, x1, self.source[1], self.size[1], self.sampling)
        return image[rows][:, columns[::-1] if self.flip else columns]

    def project(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Points [..., 2] (x, y) of the source in the target."""
        (height, width), (x0, y0, x1, y1) = self.size, self.crop
        moved = (points - [x0, y0]) * [width / (x1 - x0), height / (y1 - y0)]
        if self.flip:
            moved[..., 0] = width - moved[..., 0]
        return moved


def _sample(begin: float, end: float, source: int, target: int, sampling: Sampling) -> NDArray[np.int64]:
    if sampling == "pil_nearest":
        steps = np.full(target, (end - begin) / target)
        steps[0] /= 2
        pixels = begin + np.floor(np.cumsum(steps))
    else:
        pixels = np.floor(begin + (2 * np.arange(target) + 1) * (end - begin) / (2 * target))
    return np.minimum(pixels, source - 1).astype(np.int64)


def _snap(coordinates: NDArray[np.float64]) -> NDArray[np.int64]:
    """In fifths of a pixel."""
    return np.trunc(5 * coordinates + 0.5).astype(np.int64)


def _first_pixel(fifths: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """The first pixel whose centre, at 5 k + 2.5 fifths, is not before the edge."""
    return np.minimum((np.maximum(fifths, 0) + 2) // 5, size)


def _fill_box(corners: NDArray[np.float64], size: Size) -> BoolMask:
    mask = np.zeros(size, bool)
    (x0, x1), (y0, y1) = (_first_pixel(_snap(np.sort(corners[i::2])), size[1 - i]) for i in (0, 1))
    mask[y0:y1, x0:x1] = True
    return mask


def _fill_polygon(points: NDArray[np.float64], size: Size) -> BoolMask:
    """Even-odd: walk the snapped boundary in whole fifths, and flip a column below each crossing of its centre line."""
    corners = _snap(points)
    crossings = np.zeros((size[0] + 1, size[1]), np.int64)
    for start, end in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        span = np.abs(end - start)
        along = 0 if span[0] >= span[1] else 1  # the longer axis, which the walk goes up
        if start[along] > end[along]:
            start, end = end, start
        if span[along] == 0:
            continue
        steps = np.arange(span[along] + 1)
        slope = (end - start)[1 - along] / span[along]
        walk = [start[along] + steps, np.trunc(start[1 - along] + slope * steps + 0.5).astype(np.int64)]
        x, y = walk if along == 0 else walk[::-1]
        left, upper = np.minimum(x[1:], x[:-1]), np.minimum(y[1:], y[:-1])
        crossed = (x[1:] != x[:-1]) & (left % 5 == 2) & (left >= 0) & (left < 5 * size[1])
        np.add.at(crossings, (_first_pixel(upper[crossed], size[0]), left[crossed] // 5), 1)
    return np.cumsum(crossings[:-1], axis=0) % 2 == 1


def _mask(objects: Objects, number: int, view: _View) -> BoolMask:
    """bool [H, W], one object of all."""
    match objects:
        case Boxes():
            corners = objects.corners[number]
            if view.sampling == "pil_nearest":
                return view.sample(_fill_box(corners, view.source))
            return _fill_box(view.project(corners.reshape(2, 2)).ravel(), view.size)
        case Polygons():
            parts = range(objects.object_offsets[number], objects.object_offsets[number + 1])
            outlines = [objects.coordinates[slice(*objects.part_offsets[part : part + 2])] for part in parts]
            fills = [_fill_polygon(view.project(outline.reshape(-1, 2)), view.size) for outline in outlines]
            return np.logical_or.reduce(fills)
        case RunLengths() | Masks():
            values = objects.values[slice(*objects.offsets[number : number + 2])]
            if isinstance(objects, Masks):
                return view.sample(values.reshape(view.source) != 0)
            counts = read_counts(values.tobytes()) if objects.compressed else values
            pixels = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
            return view.sample(pixels.reshape(view.source, order="F"))


def _views(views: Views, size: Size) -> list[_View]:
    columns = zip(views.sizes.tolist(), views.crops, views.flips, strict=True)
    return [_View((height, width), crop, bool(flip), views.sampling, size) for (height, width), crop, flip in columns]


def _images(
    objects: Objects, views: Views, size: Size, images: ArrayLike | None
) -> list[tuple[list[BoolMask], NDArray[np.int32]]]:
    """Image by image the masks of its objects and their classes."""
    numbers = np.arange(objects.num_images) if images is None else np.asarray(images)
    drawn = []
    for image, view in zip(numbers, _views(views, size), strict=True):
        begin, end = objects.image_offsets[image : image + 2]
        masks = [_mask(objects, number, view) for number in range(begin, end)]
        drawn.append((masks, objects.class_ids[begin:end]))
    return drawn


def _classes_of_pixels(
    annotations: Objects | LabelMaps, views: Views, size: Size, overlap: str, images: ArrayLike | None
) -> NDArray[np.int64]:
    """int64 [B, H, W], -1 where there is none."""
    labels = np.full((len(views.sizes), *size), -1)
    if isinstance(annotations, LabelMaps):
        numbers = np.arange(annotations.num_images) if images is None else np.asarray(images)
        for plane, image, view in zip(labels, numbers, _views(views, size), strict=True):
            values = annotations.values[slice(*annotations.offsets[image : image + 2])]
            shown = view.sample(values.reshape(view.source)).astype(np.int64)
            known = np.ones_like(shown, bool) if annotations.ignore is None else shown != annotations.ignore
            plane[known] = annotations.classes[shown[known]]
        return labels
    for plane, (masks, class_ids) in zip(labels, _images(annotations, views, size, images), strict=True):
        order = list(range(len(masks)))
        if overlap == "first":
            order.reverse()
        elif overlap == "largest-last":
            order.sort(key=lambda number: masks[number].sum())
        for number in order:
            plane[masks[number]] = class_ids[number]
    return labels
