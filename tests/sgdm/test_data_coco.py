"""Folders of the COCO format: what its files may hold, and what they may not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sgdm.data.coco import CocoFolder
from sgdm.data.opening import open_source
from sgdm.data.sources import ImageFolder, MissingSplit, UnreadableImage
from sgdm.data.truth import AnnotatedSource, Truth, stored_segments

WIDTH, HEIGHT = 12, 8


def content(*annotations: dict[str, Any], images: int = 3) -> dict[str, Any]:
    """Images 70, 71, ... named against the order of their ids; categories with gaps, as COCO's have."""
    return {
        "info": {"description": "ours"},
        "images": [
            {"id": 70 + i, "file_name": f"{images - i:012d}.png", "height": HEIGHT, "width": WIDTH, "coco_url": ""}
            for i in range(images)
        ],
        "annotations": [
            {"id": i, "iscrowd": 0, "image_id": 70, "category_id": 18} | a for i, a in enumerate(annotations)
        ],
        "categories": [{"id": 18, "name": "dog"}, {"id": 1, "name": "person"}],
    }


def write(root: Path, values: Any, name: str = "train2017", place: str = "{}") -> Path:
    folder = root / place.format(name)
    folder.mkdir(parents=True, exist_ok=True)
    for image in values["images"]:
        pixels = np.full((HEIGHT, WIDTH, 3), image["id"], np.uint8)
        Image.fromarray(pixels).save(folder / image["file_name"])
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / f"instances_{name}.json").write_text(json.dumps(values))
    return root


def truth_of(root: Path, *annotations: dict[str, Any]) -> Truth:
    return CocoFolder(write(root, content(*annotations)), "train").truth()


def test_images_are_sorted_by_name_and_those_without_annotations_belong_to_it(tmp_path: Path) -> None:
    source = open_source(str(write(tmp_path, content({"bbox": [1, 2, 3, 4]}))), "train")
    assert isinstance(source, CocoFolder) and isinstance(source, AnnotatedSource)
    assert list(source.identifiers) == [f"{i:012d}.png" for i in (1, 2, 3)]
    assert [int(source.read(i).image[0, 0, 0]) for i in range(3)] == [72, 71, 70]
    assert source.read(0).label == -1 and list(source.label_names) == []
    assert source.truth().boxes.image_offsets.tolist() == [0, 0, 0, 1]
    assert not isinstance(ImageFolder(tmp_path, "train"), AnnotatedSource)


def test_classes_are_numbered_in_the_order_of_their_ids(tmp_path: Path) -> None:
    boxes = [{"bbox": [0, 0, 1, 1], "category_id": 18}, {"bbox": [0, 0, 1, 1], "category_id": 1}]
    truth = truth_of(tmp_path, *boxes)
    assert list(truth.class_names) == ["person", "dog"] and truth.boxes.class_ids.tolist() == [1, 0]
    assert truth.sizes.tolist() == [[HEIGHT, WIDTH]] * 3


@pytest.mark.parametrize("name", ["train", "train2014", "train2017"])
@pytest.mark.parametrize("place", ["{}", "images/{}"])
def test_names_and_places_of_splits(tmp_path: Path, name: str, place: str) -> None:
    write(tmp_path, content(), name, place)
    assert open_source(str(tmp_path), "train").read(0).image.shape == (HEIGHT, WIDTH, 3)
    with pytest.raises(MissingSplit, match=r"has no val split: looked for annotations/instances_val\*\.json"):
        open_source(str(tmp_path), "val")
    write(tmp_path, content(images=1), name.replace("train", "val"), place)
    assert len(open_source(str(tmp_path), "val")) == 1


def test_two_files_of_a_split_and_a_missing_folder_are_refused(tmp_path: Path) -> None:
    write(write(tmp_path / "two", content(), "train2014"), content(), "train2017")
    with pytest.raises(ValueError, match=r"several files.*instances_train2014\.json, instances_train2017\.json"):
        open_source(str(tmp_path / "two"), "train")
    write(tmp_path / "bare", content(images=1)).joinpath("train2017").rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"put them into .*train2017"):
        open_source(str(tmp_path / "bare"), "train")


def test_boxes_are_of_single_objects_and_half_open(tmp_path: Path) -> None:
    crowd = {"iscrowd": 1, "bbox": [0, 0, 9, 9], "segmentation": {"size": [HEIGHT, WIDTH], "counts": [0, 96]}}
    truth = truth_of(tmp_path, {"bbox": [1.5, 2, 3, 4.25]}, crowd, {"bbox": [5, 5, 0, 2]})
    assert truth.boxes.corners.tolist() == [[1.5, 2, 4.5, 6.25], [5, 5, 5, 7]]


def drawn(truth: Truth, image: int) -> list[np.ndarray]:
    """The masks of an image's segments in the middle square of HEIGHT x HEIGHT pixels, where pixels stay pixels."""
    segments = stored_segments(truth, np.array([image]), HEIGHT).uncompress()
    masks = []
    for begin, end in zip(segments.offsets[:-1], segments.offsets[1:], strict=True):
        runs = segments.values[begin:end]
        masks.append(np.repeat(np.arange(len(runs)) % 2, runs).reshape(HEIGHT, HEIGHT).T.astype(bool))
    return masks


def middle(mask: np.ndarray) -> np.ndarray:
    return mask[:, 2 : 2 + HEIGHT]


def test_polygons_of_several_parts_and_run_lengths_of_both_kinds(tmp_path: Path) -> None:
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[1:3, 3:5] = expected[5:7, 6:9] = True
    parts = [[3, 1, 5, 1, 5, 3, 3, 3], [6, 5, 9, 5, 9, 7, 6, 7]]
    edges = np.flatnonzero(np.diff(expected.ravel(order="F"), prepend=False))
    counts = np.diff([0, *edges, expected.size]).tolist()
    mask_utils = pytest.importorskip("pycocotools.mask")
    compressed = mask_utils.encode(np.asfortranarray(expected.astype(np.uint8)))["counts"].decode()
    size = [HEIGHT, WIDTH]
    truth = truth_of(
        tmp_path,
        {"segmentation": {"size": size, "counts": counts}, "iscrowd": 1},
        {"segmentation": parts, "category_id": 1},
        {"segmentation": {"size": size, "counts": compressed}},
    )
    masks = drawn(truth, 2)
    assert len(masks) == 3 and not drawn(truth, 0)
    for mask in masks:
        np.testing.assert_array_equal(mask, middle(expected))
    assert stored_segments(truth, np.array([2]), HEIGHT).class_ids.tolist() == [0, 1, 1]  # polygons come first


def test_what_has_no_area_is_no_segment(tmp_path: Path) -> None:
    parts = [[[1, 1]], [[1, 1, 5, 5]], [], None, [[3, 1, 5, 1, 5, 3, 3, 3], [2, 2, 3, 3]]]
    truth = truth_of(tmp_path, *({"bbox": [0, 0, 1, 1], "segmentation": value} for value in parts))
    assert len(truth.boxes.class_ids) == 5 and len(drawn(truth, 2)) == 1


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ({"image_id": 5}, r"annotations\.0 is of the image 5, which is not listed"),
        ({"category_id": 2}, r"annotations\.0 is of the category 2, which is not listed"),
        ({"bbox": [1, 1, -1, 1]}, r"annotations\.0\.bbox .* negative size"),
        ({"segmentation": [[1, 1, 2, 2, 3, 3, 4]]}, r"annotations\.0\.segmentation .* odd number"),
        ({"segmentation": {"size": [WIDTH, HEIGHT], "counts": [96]}}, r"annotations\.0\.segmentation is of \(12, 8\)"),
    ],
)
def test_impossible_annotations_are_named(tmp_path: Path, annotation: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"instances_train2017\.json: {message}"):
        truth_of(tmp_path, annotation)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": 3}, "images: Input should be a valid (list|array)"),
        ({"categories": None}, "categories: Input should be a valid (list|array)"),
        (
            {"images": [{"id": 1, "file_name": "a.png", "height": 0, "width": 1}]},
            r"images\.0\.height: .*greater than 0",
        ),
        ({"images": [{"id": 1, "height": 1, "width": 1}]}, r"images\.0\.file_name: Field required"),
        ({"annotations": [{"image_id": 70, "category_id": 1, "bbox": [1, 2, 3]}]}, r"annotations\.0\.bbox"),
        ({"annotations": [{"image_id": 70, "category_id": 1, "bbox": [1, 2, 3, "x"]}]}, r"annotations\.0\.bbox\.3"),
        ({"annotations": [{"image_id": 70, "category_id": 1, "segmentation": "x"}]}, r"annotations\.0\.segmentation"),
        ({"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}, "id 1 twice among its categories"),
        ({"images": []}, "lists no image"),
    ],
)
def test_files_of_another_format_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    write(tmp_path, content())
    path = tmp_path / "annotations" / "instances_train2017.json"
    path.write_text(json.dumps(content() | change))
    with pytest.raises(ValueError, match=rf"instances_train2017\.json.*{message}"):
        CocoFolder(tmp_path, "train").truth()


@pytest.mark.parametrize("text", ["", "{", '{"images": [1e999]}', "[]", '{"annotations": [{"bbox": [NaN, 0, 1, 1]}]}'])
def test_damaged_json_is_named(tmp_path: Path, text: str) -> None:
    write(tmp_path, content())
    (tmp_path / "annotations" / "instances_train2017.json").write_text(text)
    with pytest.raises(ValueError, match=r"instances_train2017\.json is not of the COCO format"):
        CocoFolder(tmp_path, "train")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 100) | st.floats() | st.sampled_from(["", "a", "0", "é~"]),
    lambda inner: st.lists(inner, max_size=7) | st.dictionaries(st.sampled_from(["size", "counts"]), inner),
    max_leaves=12,
)


@settings(deadline=None, max_examples=150)
@given(st.dictionaries(st.sampled_from(["bbox", "segmentation", "iscrowd", "image_id", "category_id"]), json_values))
def test_any_annotation_is_refused_or_understood(
    tmp_path_factory: pytest.TempPathFactory, annotation: dict[str, Any]
) -> None:
    root = write(tmp_path_factory.getbasetemp() / "any_annotation", content(annotation, images=1))
    try:
        truth = CocoFolder(root, "train").truth()
        segments = stored_segments(truth, np.arange(1), 4)
    except ValueError:
        return
    assert len(truth.boxes.class_ids) <= 1 and len(segments.class_ids) <= 1


def test_missing_and_other_images_are_unreadable(tmp_path: Path) -> None:
    source = CocoFolder(write(tmp_path, content()), "train")
    before = source.fingerprint()
    (tmp_path / "train2017" / "000000000001.png").unlink()
    Image.new("RGB", (HEIGHT, WIDTH)).save(tmp_path / "train2017" / "000000000002.png")
    with pytest.raises(UnreadableImage, match=r"000000000001\.png cannot be read"):
        source.read(0)
    with pytest.raises(UnreadableImage, match=r"is 8 x 12 pixels, but instances_train2017\.json says 12 x 8"):
        source.read(1)
    assert source.fingerprint() != before


def test_the_fingerprint_follows_the_annotations(tmp_path: Path) -> None:
    before = CocoFolder(write(tmp_path, content()), "train").fingerprint()
    assert CocoFolder(tmp_path, "train").fingerprint() == before
    path = tmp_path / "annotations" / "instances_train2017.json"
    path.write_text(json.dumps(content({"bbox": [0, 0, 1, 1]})))
    assert CocoFolder(tmp_path, "train").fingerprint() != before
