from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sgdm import files
from sgdm.annotate.layout import Kind, LayoutManifest, load_layout, save_layout
from sgdm.annotate.sets import AnnotationError
from sgdm.ragged import Boxes, Masks, RunLengths, Views
from sgdm.raster import encode, rasterize_mask


def manifest_of(kind: Kind) -> LayoutManifest:
    return LayoutManifest(
        data_digest="aaaa",
        kind=kind,
        method="truth",
        weights_digest="",
        class_names=["cat", "dog"],
        seed=3,
        parameters={"images": 3},
        versions={"numpy": "2"},
        report={"objects": 3},
    )


def boxes_of_three_images() -> Boxes:
    return Boxes.of([[(0, 0, 0.5, 1)], [], [(0.1, 0.2, 0.3, 0.4), (0.25, 0, 1, 0.75)]], [[1], [], [0, 1]])


def segments_of_three_images() -> RunLengths:
    masks = np.random.default_rng(0).integers(0, 2, (3, 8, 8), np.uint8)
    return encode(Masks.of([[masks[0]], [], masks[1:]], [[1], [], [0, 1]]), Views.of([(8, 8)] * 3), size=(8, 8))


OBJECTS = {"boxes": boxes_of_three_images, "segments": segments_of_three_images}
kinds = pytest.mark.parametrize("kind", ["boxes", "segments"])


def write_set(folder: Path, kind: Kind) -> Boxes | RunLengths:
    objects = OBJECTS[kind]()
    save_layout(folder, manifest_of(kind), objects)
    return objects


@kinds
def test_round_trip(tmp_path: Path, kind: Kind) -> None:
    written = write_set(tmp_path / "set", kind)
    manifest, objects = load_layout(tmp_path / "set", "aaaa")
    assert manifest == manifest_of(kind) and manifest.num_classes == 2
    assert type(objects) is type(written) and objects.num_images == 3
    for name, value in vars(written).items():
        found = getattr(objects, name)
        assert found.dtype == value.dtype
        np.testing.assert_allclose(found, value, rtol=0, atol=1e-7)  # float32 of 0 to 1


@kinds
def test_loaded_objects_are_drawn_as_the_written_ones(tmp_path: Path, kind: Kind) -> None:
    written = write_set(tmp_path, kind)
    views = Views.of([(1, 1) if kind == "boxes" else (8, 8)] * 3, flips=[0, 1, 1])
    drawn, expected = (
        rasterize_mask(objects, views, torch.zeros(3, 1, 8, 8, dtype=torch.uint8))
        for objects in (load_layout(tmp_path, "aaaa").objects, written)
    )
    assert torch.equal(drawn, expected) and expected.any()


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 3), max_size=5))
def test_any_number_of_boxes_an_image(tmp_path_factory: pytest.TempPathFactory, counts: list[int]) -> None:
    folder = tmp_path_factory.mktemp("set")
    written = Boxes.of([[(0, 0, 1, 0.5)] * count for count in counts])
    save_layout(folder, manifest_of("boxes"), written)
    objects = load_layout(folder, "aaaa").objects
    assert objects.image_offsets.tolist() == written.image_offsets.tolist()


def test_segments_are_not_read_into_memory(tmp_path: Path) -> None:
    write_set(tmp_path, "segments")
    objects = load_layout(tmp_path, "aaaa").objects
    mapped = [getattr(objects, name) for name in ("values", "offsets", "sizes", "class_ids", "image_offsets")]
    assert all(not array.flags.owndata and not array.flags.writeable for array in mapped)


@kinds
def test_parts_make_one_set(tmp_path: Path, kind: Kind) -> None:
    part = OBJECTS[kind]()
    save_layout(tmp_path, manifest_of(kind), part, part)
    objects = load_layout(tmp_path, "aaaa").objects
    assert objects.image_offsets.tolist() == [0, 1, 1, 3, 4, 4, 6]
    assert objects.class_ids.tolist() == [1, 0, 1] * 2
    if isinstance(objects, RunLengths):
        assert isinstance(part, RunLengths)
        assert objects.segments() == part.segments() * 2
    else:
        assert np.array_equal(objects.corners, np.tile(part.corners.astype(np.float32), (2, 1)))


def test_uncompressed_segments_are_stored_compressed(tmp_path: Path) -> None:
    segments = segments_of_three_images()
    save_layout(tmp_path, manifest_of("segments"), segments.uncompress())
    assert load_layout(tmp_path, "aaaa").objects.values.tobytes() == segments.values.tobytes()


def test_a_set_of_other_data_is_refused_with_both_digests(tmp_path: Path) -> None:
    write_set(tmp_path, "boxes")
    with pytest.raises(AnnotationError, match=r"aaaa.*this one is cccc.*annotate it again"):
        load_layout(tmp_path, "cccc")


@kinds
@pytest.mark.parametrize("written_before_the_end", [0, 1, 2, 3])
def test_killed_between_two_files_it_is_not_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind, written_before_the_end: int
) -> None:
    # Also over an older, whole set: its manifest must not vouch for new files.
    write_set(tmp_path, kind)
    move, moved = files.os.replace, []

    def replace_until_killed(source: Path, target: Path) -> None:
        if len(moved) == written_before_the_end:
            raise KeyboardInterrupt
        moved.append(target)
        move(source, target)

    monkeypatch.setattr("sgdm.files.os.replace", replace_until_killed)
    with pytest.raises(KeyboardInterrupt):
        write_set(tmp_path, kind)
    with pytest.raises(AnnotationError, match=r"manifest\.json is missing"):
        load_layout(tmp_path, "aaaa")


FILES = {
    "boxes": ["image_offsets.npy", "class_ids.npy", "boxes.npy"],
    "segments": ["image_offsets.npy", "class_ids.npy", "segments.npy", "segment_offsets.npy", "segment_sizes.npy"],
}
files_of_kinds = pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in FILES for name in FILES[kind]])


@files_of_kinds
@pytest.mark.parametrize("damage", ["gone", "cut", "other type", "one item less"])
def test_damaged_files_are_named(tmp_path: Path, kind: Kind, name: str, damage: str) -> None:
    write_set(tmp_path, kind)
    path = tmp_path / name
    array = np.load(path)
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        np.save(path, array.astype(np.complex64) if damage == "other type" else array[:-1])
    # Which of two files is too short by an item cannot be told: then it is their offsets or the folder.
    named = tmp_path.name if damage == "one item less" else name
    with pytest.raises(AnnotationError, match=named):
        load_layout(tmp_path, "aaaa")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("image_offsets", np.array([0, 2, 1, 3])),
        ("class_ids", np.array([0, 1, 2], np.int32)),
        ("class_ids", np.array([0, -1, 1], np.int32)),
        ("corners", np.array([[0, 0, 1, 1], [0, 0, np.nan, 1], [0, 0, 1, 1]], np.float32)),
        ("corners", np.array([[0, 0, 1, 1], [0, 0, 64, 64], [0, 0, 1, 1]], np.float32)),
        ("corners", np.array([[0, 0, 1, 1], [0.5, 0, 0.4, 1], [0, 0, 1, 1]], np.float32)),
    ],
)
def test_impossible_values_are_named(tmp_path: Path, name: str, values: np.ndarray) -> None:
    with pytest.raises(AnnotationError, match=f"{name.replace('_', '.')} of a layout must"):
        save_layout(tmp_path, manifest_of("boxes"), replace(boxes_of_three_images(), **{name: values}))
    write_set(tmp_path, "boxes")
    file = "boxes" if name == "corners" else name
    np.save(tmp_path / f"{file}.npy", values)
    with pytest.raises(AnnotationError, match=f"{file}.npy is missing, or not what was written"):
        load_layout(tmp_path, "aaaa")


@pytest.mark.parametrize("content", ["{}", "[]", '{"kind": "boxes"}'])
def test_a_manifest_of_another_kind_is_refused(tmp_path: Path, content: str) -> None:
    write_set(tmp_path, "boxes")
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(AnnotationError, match="must hold"):
        load_layout(tmp_path, "aaaa")


def test_what_could_not_be_loaded_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match="cannot hold RunLengths"):
        save_layout(tmp_path, manifest_of("boxes"), segments_of_three_images())
    with pytest.raises(AnnotationError, match="must lie within 0 to 0"):
        save_layout(tmp_path, replace(manifest_of("boxes"), class_names=["cat"]), boxes_of_three_images())
    assert not list(tmp_path.iterdir())
