"""Which source pixels a view shows: the centre rule, Pillow's NEAREST, crops and flips, label maps and their table."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.nn.functional import one_hot

from sgdm.ragged import Boxes, LabelMaps, Masks, Polygons, Views
from sgdm.raster import rasterize_channels, rasterize_labels, rasterize_mask, rasterize_presence

sides = st.integers(1, 700)


def labels_of(image: np.ndarray, views: Views, size: tuple[int, int]) -> np.ndarray:
    """uint8 [H, W], what a view shows of a uint8 label map."""
    out = torch.empty(1, *size, dtype=torch.uint8)
    return rasterize_labels(LabelMaps.of([image], 256), views, out, num_classes=256).numpy()[0]


def random_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)


@given(sides, sides)
def test_whole_images_follow_the_integer_centre_rule(source: int, target: int) -> None:
    image = random_image(source, 3)
    rows = np.array([((2 * i + 1) * source) // (2 * target) for i in range(target)])
    np.testing.assert_array_equal(labels_of(image, Views.of([[source, 3]]), (target, 3)), image[rows])


@given(st.integers(0, 300), st.integers(1, 300), st.integers(0, 50), sides, st.booleans())
def test_crops_follow_the_integer_centre_rule(before: int, crop: int, after: int, target: int, flip: bool) -> None:
    image = random_image(2, before + crop + after)
    columns = np.array([before + ((2 * i + 1) * crop) // (2 * target) for i in range(target)])
    views = Views.of([image.shape], crops=[[before, 0, before + crop, 2]], flips=[flip])
    expected = image[:, columns[::-1] if flip else columns]
    np.testing.assert_array_equal(labels_of(image, views, (2, target)), expected)


def test_pil_nearest_on_many_sizes() -> None:
    """Every pair of a grid, and pairs where Pillow's drift shows; the centre rule differs for some of them."""
    differing = 0
    for source in [*range(1, 40), *range(41, 700, 37), 480, 640]:
        image = random_image(source, 2)
        for target in [*range(1, 40, 2), 48, 56, 64, 96, 112, 128, 224, 256, 333, 512]:
            expected = np.asarray(Image.fromarray(image).resize((2, target), Image.Resampling.NEAREST))
            shown = labels_of(image, Views.of([image.shape], sampling="pil_nearest"), (target, 2))
            np.testing.assert_array_equal(shown, expected, err_msg=f"{source} to {target}")
            differing += not np.array_equal(expected, labels_of(image, Views.of([image.shape]), (target, 2)))
    assert differing > 0


@given(st.integers(0, 2**32 - 1), st.booleans())
def test_pil_nearest_of_crop_and_flip(seed: int, flip: bool) -> None:
    rng = np.random.default_rng(seed)
    height, width, *size = map(int, rng.integers(1, 200, 4))
    x0, y0 = rng.integers(0, [width, height])
    x1, y1 = rng.integers([x0, y0], [width, height]) + 1
    image = random_image(height, width, seed)
    shown = Image.fromarray(image).crop((x0, y0, x1, y1)).resize(size[::-1], Image.Resampling.NEAREST)
    if flip:
        shown = shown.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    views = Views.of([[height, width]], crops=[[x0, y0, x1, y1]], flips=[flip], sampling="pil_nearest")
    np.testing.assert_array_equal(labels_of(image, views, (size[0], size[1])), np.asarray(shown))


@given(st.integers(0, 2**32 - 1))
def test_pil_nearest_of_boxes_is_a_resized_slice(seed: int) -> None:
    """The released SGDM code's object masks: ones in a NumPy slice of the source, then resized."""
    rng = np.random.default_rng(seed)
    height, width, *size = map(int, rng.integers(1, 200, 4))
    x0, x1 = sorted(rng.integers(0, width + 1, 2).tolist())
    y0, y1 = sorted(rng.integers(0, height + 1, 2).tolist())
    source = np.zeros((height, width), np.uint8)
    source[y0:y1, x0:x1] = 1
    out = torch.empty(1, 1, *size, dtype=torch.uint8)
    rasterize_mask(Boxes.of([[[x0, y0, x1, y1]]]), Views.of([[height, width]], sampling="pil_nearest"), out)
    expected = Image.fromarray(source).resize(size[::-1], Image.Resampling.NEAREST)
    np.testing.assert_array_equal(out[0, 0], np.asarray(expected))


@given(st.integers(0, 2**32 - 1), st.sampled_from(["boxes", "polygons"]))
def test_flipped_shapes_are_mirrored(seed: int, kind: str) -> None:
    """Away from ties, which COCO's rule breaks to one side, a flipped view is the mirrored view."""
    rng = np.random.default_rng(seed)
    points = rng.integers(-20, 120, (6, 2)) / 2 + 0.25
    corners = [*points.min(axis=0), *points.max(axis=0)]
    shapes = Boxes.of([[corners]]) if kind == "boxes" else Polygons.of([[[points.ravel()]]])
    plain, mirrored = (
        rasterize_mask(shapes, Views.of([[40, 50]], flips=[flip]), torch.empty(1, 1, 40, 50, dtype=torch.uint8))
        for flip in (False, True)
    )
    different = (plain != mirrored.flip(-1)).sum()
    assert different == 0 if kind == "boxes" else different <= 0.05 * plain.numel()


def test_boxes_of_unit_images() -> None:
    """Annotations in [0, 1] of the stored image: its size is 1 x 1, whatever it is stored at."""
    boxes = Boxes.of([np.array([[0.25, 0.5, 0.75, 1.0]], np.float32)])
    out = rasterize_mask(boxes, Views.of([[1, 1]]), torch.empty(1, 1, 8, 8, dtype=torch.uint8))
    assert out[0, 0, 4:, 2:6].all() and out.sum() == 16
    crop = Views.of([[1, 1]], crops=[[0.25, 0.5, 0.75, 1.0]])
    assert rasterize_mask(boxes, crop, out).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("out_dtype", [torch.uint8, torch.bfloat16])
def test_label_maps_as_torch_one_hot(dtype: type, layout: torch.memory_format, out_dtype: torch.dtype) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 182, (3, 40, 50)).astype(dtype)
    images[rng.random(images.shape) < 0.1] = 255
    table = rng.integers(0, 27, 182)
    out = torch.empty(3, 27, 40, 50, dtype=out_dtype).to(memory_format=layout)
    rasterize_channels(LabelMaps.of(list(images), table, ignore=255), Views.of([[40, 50]] * 3), out)
    known = torch.from_numpy(images != 255)
    classes = torch.from_numpy(table[np.where(images == 255, 0, images)])
    expected = one_hot(classes, 27).mul(known[..., None]).permute(0, 3, 1, 2).to(out_dtype)
    assert torch.equal(out, expected)
    assert out.is_contiguous(memory_format=layout)


def test_ignored_labels_are_of_no_class() -> None:
    maps = LabelMaps.of([np.array([[0, 1], [2, 255]], np.uint8)], [1, -1, 0], ignore=255)
    views = Views.of([[2, 2]])
    labels = rasterize_labels(maps, views, torch.empty(1, 2, 2, dtype=torch.uint8), num_classes=2, background=9)
    assert labels.tolist() == [[[1, 9], [0, 9]]]
    assert rasterize_mask(maps, views, torch.empty(1, 1, 2, 2, dtype=torch.uint8)).tolist() == [[[[1, 0], [1, 0]]]]
    presence = rasterize_presence(maps, views, torch.empty(1, 3, dtype=torch.uint8), size=(2, 2))
    assert presence.tolist() == [[1, 1, 0]]


def test_label_maps_of_different_sizes() -> None:
    images = [random_image(5, 9) % 4, random_image(30, 20) % 4]
    out = torch.empty(2, 4, 4, dtype=torch.uint8)
    rasterize_labels(LabelMaps.of(images, 4), Views.of([[5, 9], [30, 20]]), out, num_classes=4)
    for image, shown in zip(images, out.numpy(), strict=True):
        np.testing.assert_array_equal(shown, labels_of(image, Views.of([image.shape]), (4, 4)))


def test_masks_keep_what_is_not_zero() -> None:
    mask = np.array([[0, 1], [7, 255]], np.uint8)
    out = rasterize_mask(Masks.of([[mask]]), Views.of([[2, 2]]), torch.empty(1, 1, 2, 2, dtype=torch.uint8))
    assert out.tolist() == [[[[0, 1], [1, 1]]]]
