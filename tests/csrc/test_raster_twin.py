"""C++ and NumPy draw the same bytes: every kind of annotation, view, form of output and policy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sgdm import raster_numpy
from sgdm.ragged import Boxes, LabelMaps, Masks, Objects, Polygons, RunLengths, Views
from sgdm.raster import encode, rasterize_channels, rasterize_labels, rasterize_mask, rasterize_presence

CLASSES = 5
OBJECTS = ["boxes", "polygons", "run_lengths", "counts", "masks"]
seeds = st.integers(0, 2**32 - 1)
heights = st.integers(1, 70)
widths = st.integers(1, 140)


def random_crop(rng: np.random.Generator, size: np.ndarray, whole: bool) -> list[float]:
    """x0 y0 x1 y1 inside of a source of `size`, in whole pixels or not."""
    (y0, x0), (y1, x1) = rng.uniform([[0, 0], [0.55, 0.55]], [[0.45, 0.45], [1, 1]]) * size
    corners = np.array([x0, y0, x1, y1])
    return [*np.floor(corners[:2]), *np.ceil(corners[2:])] if whole else list(corners)


def random_annotations(rng: np.random.Generator, kind: str, sizes: np.ndarray) -> Objects | LabelMaps:
    counts = rng.integers(0, 6, len(sizes))
    class_ids = [rng.integers(0, CLASSES, count) for count in counts]
    if kind == "boxes":
        return Boxes.of(
            [np.sort(rng.uniform(-10, 45, (count, 2, 2)), axis=1).reshape(-1, 4) for count in counts], class_ids
        )
    if kind == "polygons":
        parts = [[rng.integers(1, 3) for _ in range(count)] for count in counts]
        shapes = [
            [[rng.uniform(-10, 45, 2 * rng.integers(3, 8)) for _ in range(n)] for n in of_image] for of_image in parts
        ]
        return Polygons.of(shapes, class_ids)
    if kind == "label_maps":
        labels = [rng.integers(0, 9, size).astype(rng.choice([np.uint8, np.int32])) for size in sizes]
        return LabelMaps.of(labels, rng.integers(-1, CLASSES, 8), ignore=8)
    masks = [[rng.random(size) < rng.random() for _ in range(n)] for size, n in zip(sizes, counts, strict=True)]
    if kind == "masks":
        return Masks.of(masks, class_ids)
    segments = [
        [{"size": mask.shape, "counts": raster_numpy.encode_mask(mask)} for mask in of_image] for of_image in masks
    ]
    compressed = RunLengths.of(segments, class_ids)
    return compressed if kind == "run_lengths" else compressed.uncompress()


def random_batch(seed: int, kind: str, sampling: str = "centre") -> tuple[Objects | LabelMaps, Views, np.ndarray]:
    """Annotations of five images, views of four, and which these are."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 40, (5, 2))
    annotations = random_annotations(rng, kind, sizes)
    images = rng.integers(0, 5, 4)
    crops = [random_crop(rng, size, whole=sampling == "pil_nearest") for size in sizes[images]]
    return annotations, Views.of(sizes[images], crops, rng.random(4) < 0.5, sampling), images


@pytest.mark.parametrize(
    ("kind", "sampling"),
    [(kind, "centre") for kind in [*OBJECTS, "label_maps"]]
    + [(kind, "pil_nearest") for kind in ["boxes", "run_lengths", "masks", "label_maps"]],
)
@settings(deadline=None, max_examples=60)
@given(seed=seeds, height=heights, width=widths)
def test_same_bytes(kind: str, sampling: str, seed: int, height: int, width: int) -> None:
    annotations, views, images = random_batch(seed, kind, sampling)
    size = (height, width)
    labels = torch.empty(4, *size, dtype=torch.uint8)
    channels = torch.empty(4, CLASSES, *size, dtype=torch.uint8)
    for overlap in ("last", "first", "largest-last"):
        rasterize_labels(annotations, views, labels, num_classes=CLASSES, background=77, overlap=overlap, images=images)
        expected = raster_numpy.rasterize_labels(
            annotations, views, size, background=77, overlap=overlap, images=images
        )
        np.testing.assert_array_equal(labels, expected)
        rasterize_channels(annotations, views, channels, overlap=overlap, images=images)
        np.testing.assert_array_equal(channels, expected[:, None] == np.arange(CLASSES)[:, None, None])
    rasterize_channels(annotations, views, channels, overlap="multi-hot", images=images)
    expected = raster_numpy.rasterize_channels(
        annotations, views, size, num_classes=CLASSES, overlap="multi-hot", images=images
    )
    np.testing.assert_array_equal(channels, expected)
    mask = rasterize_mask(annotations, views, torch.empty(4, 1, *size, dtype=torch.uint8), images=images)
    np.testing.assert_array_equal(mask, raster_numpy.rasterize_mask(annotations, views, size, images=images))
    presence = torch.empty(4, CLASSES, dtype=torch.uint8)
    rasterize_presence(annotations, views, presence, size=size, images=images)
    np.testing.assert_array_equal(
        presence, raster_numpy.rasterize_presence(annotations, views, size, num_classes=CLASSES, images=images)
    )


@pytest.mark.parametrize("kind", OBJECTS)
@settings(deadline=None, max_examples=60)
@given(seed=seeds, height=heights, width=widths)
def test_encoded_objects_draw_the_same(kind: str, seed: int, height: int, width: int) -> None:
    """Stored at the stored image's size, objects give the labels that they would have given there at once."""
    annotations, views, images = random_batch(seed, kind)
    assert not isinstance(annotations, LabelMaps)
    segments = encode(annotations, views, size=(height, width), images=images)
    stored = Views.of(np.tile([height, width], (4, 1)))
    at_once, later = torch.empty(2, 4, height, width, dtype=torch.uint8)
    rasterize_labels(annotations, views, at_once, num_classes=CLASSES, images=images)
    rasterize_labels(segments, stored, later, num_classes=CLASSES)
    assert torch.equal(at_once, later)
