"""Bit for bit as pycocotools: against what it made once (coco_masks.json), and against itself where installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sgdm import raster_numpy
from sgdm.ragged import Boxes, Masks, Objects, Polygons, RunLengths, Views
from sgdm.raster import encode, rasterize_mask

FIXTURES = json.loads((Path(__file__).parent / "coco_masks.json").read_text())

try:
    from pycocotools import mask as coco
except ImportError:
    coco = None
needs_coco = pytest.mark.skipif(coco is None, reason="pycocotools is not installed")

# Whole, half and fifth pixels make ties; large ones lie far off the image.
coordinates = st.one_of(
    st.integers(-8, 48).map(float),
    st.integers(-16, 96).map(lambda halves: halves / 2),
    st.integers(-80, 480).map(lambda tenths: tenths / 10),
    st.floats(-60, 120, width=32),
    st.floats(-1e5, 1e5),
)
polygons = st.lists(coordinates, min_size=6, max_size=24).map(lambda flat: flat[: len(flat) // 2 * 2])
sizes = st.tuples(st.integers(1, 40), st.integers(1, 140))


def encoded(objects: Objects, size: tuple[int, int]) -> str:
    """The counts of the only object, in the source itself."""
    return encode(objects, Views.of([size]), size=size).segments()[0]["counts"].decode()


def mask_of(objects: Objects, size: tuple[int, int]) -> np.ndarray:
    return rasterize_mask(objects, Views.of([size]), torch.empty(1, 1, *size, dtype=torch.uint8)).numpy()[0, 0]


@pytest.mark.parametrize("case", FIXTURES["polygons"])
def test_polygons_as_frozen(case: dict[str, Any]) -> None:
    assert encoded(Polygons.of([[case["parts"]]]), case["size"]) == case["counts"]


@pytest.mark.parametrize("case", FIXTURES["boxes"])
def test_boxes_as_frozen(case: dict[str, Any]) -> None:
    assert encoded(Boxes.of([[case["box"]]], layout="xywh"), case["size"]) == case["counts"]


@pytest.mark.parametrize("case", FIXTURES["segments"], ids=lambda case: str(case["size"]))
def test_codec_as_frozen(case: dict[str, Any]) -> None:
    size, counts, text = case["size"], case["uncompressed"], case["counts"]
    compressed = RunLengths.of([[{"size": size, "counts": text}]])
    assert compressed.uncompress().values.tolist() == counts
    assert RunLengths.of([[{"size": size, "counts": counts}]]).segments() == [{"size": size, "counts": text.encode()}]
    pixels = np.repeat(np.arange(len(counts)) % 2, counts).reshape(size, order="F")
    np.testing.assert_array_equal(mask_of(compressed, size), pixels)
    np.testing.assert_array_equal(mask_of(compressed.uncompress(), size), pixels)
    assert encoded(Masks.of([[pixels.astype(np.uint8)]]), size) == text


@needs_coco
@settings(deadline=None)
@given(st.lists(polygons, min_size=1, max_size=3), sizes)
def test_polygons_as_pycocotools(parts: list[list[float]], size: tuple[int, int]) -> None:
    expected = coco.merge(coco.frPyObjects(parts, *size))
    objects = Polygons.of([[parts]])
    assert encoded(objects, size) == expected["counts"].decode()
    np.testing.assert_array_equal(mask_of(objects, size), coco.decode(expected))


@needs_coco
@given(coordinates, coordinates, coordinates, coordinates, sizes)
def test_boxes_as_pycocotools(x: float, y: float, width: float, height: float, size: tuple[int, int]) -> None:
    box = np.array([[x, y, abs(width), abs(height)]])
    expected = coco.decode(coco.frPyObjects(box, *size))[:, :, 0]
    np.testing.assert_array_equal(mask_of(Boxes.of([box], layout="xywh"), size), expected)


@needs_coco
@given(st.lists(st.integers(0, 60), min_size=1, max_size=30), st.integers(1, 12))
def test_every_valid_run_length_as_pycocotools(counts: list[int], height: int) -> None:
    """Zero counts in the middle too, which pycocotools itself never makes."""
    counts.append(height - sum(counts) % height)
    size = (height, sum(counts) // height)
    segment = coco.frPyObjects({"size": list(size), "counts": counts}, *size)
    objects = RunLengths.of([[segment]])
    np.testing.assert_array_equal(mask_of(objects, size), coco.decode(segment))
    assert objects.uncompress().values.tolist() == counts
    assert objects.uncompress().segments() == [{"size": list(size), "counts": segment["counts"]}]


@needs_coco
def test_union_as_pycocotools_merge() -> None:
    masks = (np.random.default_rng(0).random((3, 30, 70)) < 0.2).astype(np.uint8)
    segments = [coco.encode(np.asfortranarray(mask)) for mask in masks]
    np.testing.assert_array_equal(mask_of(RunLengths.of([segments]), (30, 70)), coco.decode(coco.merge(segments)))


@needs_coco
def test_polygons_scaled_into_the_target_as_detectron2() -> None:
    """Cropped and scaled there before pycocotools fills them."""
    rng = np.random.default_rng(1)
    for _ in range(200):
        points = rng.uniform(-20, 660, (8, 2))
        x0, y0 = rng.integers(0, 200, 2)
        x1, y1 = rng.integers(201, 480, 2)
        views = Views.of([[480, 640]], crops=[[x0, y0, x1, y1]])
        out = rasterize_mask(Polygons.of([[[points.ravel()]]]), views, torch.empty(1, 1, 64, 64, dtype=torch.uint8))
        scaled = (points - [x0, y0]) * [64 / (x1 - x0), 64 / (y1 - y0)]
        expected = coco.decode(coco.frPyObjects([scaled.ravel().tolist()], 64, 64))[:, :, 0]
        np.testing.assert_array_equal(out[0, 0], expected)


@given(st.lists(st.integers(0, 2**32 - 1), max_size=20))
def test_codec_round_trip(counts: list[int]) -> None:
    texts = RunLengths.of([[{"size": [1, 1], "counts": counts}]])
    assert texts.values.tobytes() == raster_numpy.write_counts(counts)
    assert raster_numpy.read_counts(texts.values.tobytes()) == counts
    assert texts.uncompress().values.tolist() == counts
    assert texts.uncompress().compress().values.tobytes() == texts.values.tobytes()


@given(st.integers(1, 30), st.integers(1, 90), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.03, 0.5, 1.0]))
def test_encode_inverts_draw(height: int, width: int, seed: int, density: float) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < density
    text = encoded(Masks.of([[mask]]), (height, width))
    assert text.encode() == raster_numpy.encode_mask(mask)
    segment = {"size": [height, width], "counts": text}
    np.testing.assert_array_equal(mask_of(RunLengths.of([[segment]]), (height, width)), mask)


@given(st.lists(st.integers(-40, 80), min_size=4, max_size=4), st.integers(1, 48), st.integers(1, 140))
def test_integer_boxes_are_slices(corners: list[int], height: int, width: int) -> None:
    x0, x1 = sorted(corners[:2])
    y0, y1 = sorted(corners[2:])
    expected = np.zeros((height, width), np.uint8)
    expected[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] = 1
    np.testing.assert_array_equal(mask_of(Boxes.of([[[x0, y0, x1, y1]]]), (height, width)), expected)


@given(st.lists(st.integers(0, 40), min_size=4, max_size=4))
def test_box_layouts(numbers: list[int]) -> None:
    x, y, width, height = numbers
    expected = Boxes.of([[[x, y, x + width, y + height]]]).corners
    np.testing.assert_array_equal(Boxes.of([[numbers]], layout="xywh").corners, expected)
    centred = [x + width / 2, y + height / 2, width, height]
    np.testing.assert_array_equal(Boxes.of([[centred]], layout="cxcywh").corners, expected)
