"""Bad input is a ValueError that names image, object and value; nothing is skipped and nothing is garbage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sgdm.ragged import Boxes, LabelMaps, Masks, Objects, Polygons, RunLengths, Views
from sgdm.raster import encode, rasterize_channels, rasterize_labels, rasterize_mask, rasterize_presence

GOOD_BOX = [0, 0, 2, 2]
TRIANGLE = [0, 0, 4, 0, 0, 4]
nan, inf = float("nan"), float("inf")


def segment(counts: Any, size: tuple[int, int] = (4, 5)) -> dict[str, Any]:
    return {"size": size, "counts": counts}


def draw(annotations: Objects | LabelMaps, sizes: Any = (4, 5), num_classes: int = 2, **options: Any) -> torch.Tensor:
    """Labels of 8 x 8 through views of sources of one size."""
    count = annotations.num_images
    views = Views.of(np.tile(sizes, (count, 1)), **options)
    return rasterize_labels(annotations, views, torch.empty(count, 8, 8, dtype=torch.uint8), num_classes=num_classes)


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        (Boxes.of([[], [GOOD_BOX, [5, 0, 2, 2]]]), r"image 1, object 1: .*x0=5 y0=0 x1=2 .* negative"),
        (Boxes.of([[[1, 1, 2, -3]]], layout="xywh"), r"image 0, object 0: .*y0=1 x1=3 y1=-2"),
        (Boxes.of([[GOOD_BOX, [0, nan, 2, 2]]]), "image 0, object 1: the coordinate nan"),
        (Boxes.of([[[0, 0, inf, 2]]]), "image 0, object 0: the coordinate inf"),
        (Boxes.of([[[0, 0, 1e12, 2]]]), r"the coordinate 1e\+12"),
        (Boxes.of([[GOOD_BOX, GOOD_BOX]], [[0, 2]]), "image 0, object 1: class 2 is not one of 0 to 1"),
        (Boxes.of([[GOOD_BOX]], [[-1]]), "image 0, object 0: class -1"),
        (Polygons.of([[[TRIANGLE], [TRIANGLE, [0, 0, 1, 1, 2]]]]), "image 0, object 1: a polygon of 5 coordinates"),
        (Polygons.of([[[[0, 0, 1, 1]]]]), "a polygon of 2 points; it needs 3"),
        (Polygons.of([[[[]]]]), "a polygon of 0 points"),
        (Polygons.of([[[]]]), "image 0, object 0: a polygon without parts"),
        (Polygons.of([[[[0, 0, 1, -inf, 2, 2]]]]), "the coordinate -inf"),
        (Polygons.of([[[[0, 0, 1, 1e300, 2, 2]]]]), "the coordinate"),
        (RunLengths.of([[segment([20])], [segment([19])]]), "image 1, object 0: its counts sum to 19, but 4 x 5 .* 20"),
        (RunLengths.of([[segment([0, 21])]]), "sum to 21"),
        (RunLengths.of([[segment([])]]), "sum to 0"),
        (RunLengths.of([[segment([2**32 - 1] * 9)]]), "sum to 38654705655"),
        (RunLengths.of([[segment([20], (5, 4))]]), "its size is 5 x 4, but the view's source is 4 x 5"),
        (RunLengths.of([[segment("5 5")]]), "character 1 of its run lengths has the code 32"),
        (RunLengths.of([[segment(b"\xff")]]), "code 255"),
        (RunLengths.of([[segment("5P")]]), "end within count 1"),
        (RunLengths.of([[segment("PPPPPPPP1")]]), "too many digits"),
        (RunLengths.of([[segment("O")]]), "count 0 of its run lengths is -1"),
        (Masks.of([[np.zeros((5, 4))]]), "its size is 5 x 4"),
        (LabelMaps.of([np.full((4, 5), 3)], 2), "image 0: label 3 at row 0, column 0 is not one of 0 to 1"),
        (LabelMaps.of([np.full((4, 5), -1)], 2, ignore=255), "label -1"),
        (LabelMaps.of([np.zeros((4, 5))], [0, 7]), "maps label 1 to class 7"),
        (LabelMaps.of([np.zeros((2, 5))], 2), "image 0: its size is 2 x 5"),
    ],
)
def test_names_image_object_and_value(annotations: Objects | LabelMaps, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw(annotations)


@pytest.mark.parametrize(
    ("sizes", "options", "message"),
    [
        ((-4, 5), {}, "image 0: a source of -4 x 5"),
        ((0, 5), {}, "a source of 0 x 5"),
        ((1 << 21, 5), {}, "a source of 2097152 x 5"),
        ((4, 5), {"crops": [[0, 0, 6, 4]]}, "the crop x0=0 y0=0 x1=6 y1=4 .* 4 x 5"),
        ((4, 5), {"crops": [[-1, 0, 5, 4]]}, "the crop x0=-1"),
        ((4, 5), {"crops": [[2, 0, 2, 4]]}, "the crop x0=2 .* is empty"),
        ((4, 5), {"crops": [[0, nan, 2, 4]]}, "the crop x0=0 y0=nan"),
        ((4, 5), {"crops": [[0.5, 0, 5, 4]], "sampling": "pil_nearest"}, "0.5 to 5 is not of whole pixels"),
        ((4, 5), {"sampling": "bilinear"}, "'bilinear' is not one of centre, pil_nearest"),
        ((4, 5), {"crops": [[0, 0, 5]]}, "crops of views must be"),
        ((4, 5), {"flips": [0, 1]}, r"flips of views must be \[1\]"),
    ],
)
def test_names_the_fault_of_a_view(sizes: tuple[int, int], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw(RunLengths.of([[segment([20])]]), sizes, **options)


def test_polygons_know_no_pil_nearest() -> None:
    with pytest.raises(ValueError, match="object 0: polygons are scaled, not sampled"):
        draw(Polygons.of([[[TRIANGLE]]]), sampling="pil_nearest")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"offsets": [0, 9]}, "image 0, object 0: its offsets 0 to 9 .* out of 2 char"),
        ({"offsets": [1, 0]}, "its offsets 1 to 0 fall"),
        ({"offsets": [-1, 1]}, "its offsets -1 to 1"),
        ({"offsets": []}, "offsets must be one more"),
        ({"sizes": [[4, 5], [4, 5]]}, r"sizes must be \[1, 2\]"),
        ({"image_offsets": [0, 2]}, "image 0: its offsets 0 to 2 .* out of 1 objects"),
        ({"class_ids": []}, r"class_ids must be \[1\]"),
    ],
)
def test_ragged_arrays_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    good = RunLengths.of([[segment([20])]])
    with pytest.raises(ValueError, match=message):
        draw(RunLengths(**{**vars(good), **changes}))


def test_images_that_are_not_there() -> None:
    out = torch.empty(1, 8, 8, dtype=torch.uint8)
    for image in (-1, 2):
        with pytest.raises(ValueError, match=f"image {image}: row 0 of the batch asks for it, but there are 1 images"):
            rasterize_labels(Boxes.of([[GOOD_BOX]]), Views.of([[4, 5]]), out, num_classes=1, images=[image])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Boxes.of([[GOOD_BOX]], [[2**40]]), "image 0: classes cannot be int32: it has 1099511627776"),
        (lambda: Boxes.of([[], [GOOD_BOX]], [[], [0, 1]]), "image 1 has 2 class ids for 1 objects"),
        (lambda: Boxes.of([[GOOD_BOX, [0, 0, 1]]]), "image 0: boxes cannot be float64: .* inhomogeneous"),
        (lambda: Boxes.of([[], [[0, 0, 1]]]), r"image 1: boxes must be \[n, 4\], got shape \(1, 3\)"),
        (lambda: Boxes.of([[GOOD_BOX]], layout="yxyx"), "layout 'yxyx' is not one of"),  # type: ignore[arg-type]
        (lambda: Polygons.of([[], [["abc"]]]), "image 1, object 0 cannot be float64"),
        (
            lambda: RunLengths.of([[], [segment([20]), segment([-1, 21])]]),
            "image 1, object 1: counts .* it has -1",
        ),
        (lambda: RunLengths.of([[segment([2**32])]]), "cannot be uint32: it has 4294967296"),
        (lambda: LabelMaps.of([np.full((4, 5), 0.5)], 2), "image 0 cannot be int32: it has 0.5"),
        (lambda: LabelMaps.of([np.zeros((4, 5))], [0.5]), "classes cannot be int32"),
        (lambda: Masks.of([[np.zeros(3)]]), r"image 0, object 0 must be \[height, width\], got shape \(3,\)"),
        (lambda: Masks.of([[np.full((2, 2), 300)]]), "image 0, object 0 cannot be uint8: it has 300"),
    ],
)
def test_values_that_cannot_be_stored(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def to_labels(out: torch.Tensor, **options: Any) -> None:
    options = {"num_classes": 2, **options}
    rasterize_labels(Boxes.of([[GOOD_BOX]] * 2), Views.of([[4, 5]] * 2), out, **options)


def to_channels(out: torch.Tensor) -> None:
    rasterize_channels(Boxes.of([[GOOD_BOX]] * 2), Views.of([[4, 5]] * 2), out)


def to_mask(out: torch.Tensor) -> None:
    rasterize_mask(Boxes.of([[GOOD_BOX]] * 2), Views.of([[4, 5]] * 2), out)


def to_presence(out: torch.Tensor) -> None:
    rasterize_presence(Boxes.of([[GOOD_BOX]] * 2), Views.of([[4, 5]] * 2), out, size=(8, 8))


@pytest.mark.parametrize(
    ("form", "shape", "message"),
    [
        (to_labels, (3, 8, 8), "out holds 3 images, but the batch has 2"),
        (to_labels, (2, 1, 8, 8), r"out must be \[B, H, W\], got shape \(2, 1, 8, 8\)"),
        (to_labels, (2, 0, 8), "a target of 0 x 8"),
        (to_labels, (2, 1, 40000), "a target of 1 x 40000"),
        (to_channels, (2, 8, 8), r"out must be \[B, K, H, W\]"),
        (to_mask, (2, 2, 8, 8), r"out must be \[B, 1, H, W\], got shape \(2, 2, 8, 8\)"),
        (to_presence, (2,), r"out must be \[B, K\]"),
    ],
)
def test_names_the_shape_of_the_output(
    form: Callable[[torch.Tensor], None], shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        form(torch.empty(shape, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("form", "out", "message"),
    [
        (to_labels, torch.empty(2, 8, 16, dtype=torch.uint8)[:, :, ::2], "images must be contiguous, got strides"),
        (to_labels, torch.empty(1, 8, 8, dtype=torch.uint8).expand(2, 8, 8), "images that overlap"),
        (to_channels, torch.empty(2, 8, 8, 3, dtype=torch.uint8).permute(0, 3, 2, 1), "contiguous or channels_last"),
        (to_labels, torch.empty(2, 8, 8, dtype=torch.int64), "dense torch.uint8 tensor on the CPU, got torch.int64"),
        (to_labels, torch.empty(2, 8, 8, dtype=torch.bfloat16), "got torch.bfloat16"),
        (to_mask, torch.empty(2, 1, 8, 8), "torch.uint8 or torch.bfloat16 tensor on the CPU, got torch.float32"),
        (to_mask, torch.empty(2, 1, 8, 8, dtype=torch.uint8, device="meta"), "got torch.uint8 on meta"),
    ],
)
def test_names_the_memory_of_the_output(form: Callable[[torch.Tensor], None], out: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        form(out)


def test_a_buffer_that_is_too_small() -> None:
    out = torch.empty(2, 8, 8, dtype=torch.uint8)
    out.untyped_storage().resize_(100)
    with pytest.raises(ValueError, match="out is too small: its memory has 100 bytes, 128 are needed"):
        to_labels(out)


def test_an_address_that_is_not_aligned() -> None:
    raw = np.zeros(2 * 8 * 8 * 2 + 1, np.uint8)[1:]
    out = torch.from_numpy(raw.view(np.int16)).view(torch.bfloat16).view(2, 1, 8, 8)
    with pytest.raises(ValueError, match="not aligned to its elements of 2 bytes"):
        to_mask(out)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 257}, "num_classes 257 does not fit uint8"),
        ({"num_classes": 0}, "num_classes 0"),
        ({"background": 256}, "background 256 does not fit uint8"),
        ({"overlap": "median"}, "overlap 'median' is not one of last, first, largest-last, multi-hot"),
        ({"overlap": "multi-hot"}, "one class a pixel: overlap cannot be multi-hot"),
        ({"threads": 0}, "threads 0 is not possible"),
    ],
)
def test_names_the_option(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_labels(torch.empty(2, 8, 8, dtype=torch.uint8), **options)


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=60), st.integers(1, 12), st.integers(1, 12))
def test_any_text_is_a_mask_or_refused(text: bytes, height: int, width: int) -> None:
    objects = RunLengths.of([[segment(text, (height, width))]])
    out = torch.full((1, 1, 7, 7), 9, dtype=torch.uint8)
    try:
        counts = objects.uncompress().values
        rasterize_mask(objects, Views.of([[height, width]]), out)
    except ValueError as error:
        assert "object 0" in str(error)
        return
    assert counts.sum() == height * width
    assert ((out == 0) | (out == 1)).all()


@settings(deadline=None, max_examples=300)
@given(st.lists(st.floats(), max_size=12), st.integers(1, 12), st.integers(1, 12))
def test_any_coordinates_are_a_polygon_or_refused(coordinates: list[float], height: int, width: int) -> None:
    views = Views.of([[height, width]])
    valid = len(coordinates) % 2 == 0 and len(coordinates) >= 6 and np.all(np.abs(coordinates) <= 2**28)
    try:
        encode(Polygons.of([[[coordinates]]]), views, size=(height, width))
    except ValueError as error:
        assert not valid and "image 0, object 0" in str(error)
    else:
        assert valid
