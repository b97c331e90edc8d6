"""From images to boxes and segments, and their agreement with a truth that is only compared with."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from engine import annotate, prepare
from engine.annotation_config import BoxesConfig, SegmentsConfig, SelfSupervisionConfig
from engine.config import Config
from sgdm.annotate.layout import LayoutManifest, load_layout, save_layout
from sgdm.data.beton import check_beton
from sgdm.ragged import Boxes, Masks, Views
from sgdm.raster import encode, rasterize_labels

SIDE = 12


@pytest.fixture(scope="module")
def prepared(make_config: Callable[[Path], Config], tmp_path_factory: pytest.TempPathFactory) -> Config:
    """80 images of 32 x 32 pixels, each a patterned square on plain ground, with their truth, and an encoder."""
    folder = tmp_path_factory.mktemp("layout")
    (folder / "images").mkdir()
    random = np.random.default_rng(0)
    corners = random.integers(0, 32 - SIDE, (80, 2))
    masks = np.zeros((80, 32, 32), dtype=bool)
    for number, (x, y) in enumerate(corners):
        pixels = random.normal(random.uniform(60, 200, 3), 3, (32, 32, 3))
        masks[number, y : y + SIDE, x : x + SIDE] = True
        pixels[masks[number]] = random.uniform(0, 255, 3)
        pixels[y : y + SIDE : 3, x : x + SIDE] = 0
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / "images" / f"{number:03}.png")
    config = make_config(folder)
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, source=str(folder / "images"), image_size=32),
        annotation=dataclasses.replace(
            config.annotation, encoder="self-supervised", self_supervision=SelfSupervisionConfig(images=512)
        ),
    )
    prepare.run(config)
    manifest = LayoutManifest(
        data_digest=check_beton(config.data.folder / "train.beton").digest,
        kind="boxes",
        method="truth",
        weights_digest="",
        class_names=["square"],
        seed=0,
        parameters={},
        versions={},
        report={},
    )
    ones, size = np.zeros((80, 1), int), (32, 32)
    true_boxes = Boxes.of(np.concatenate([corners, corners + SIDE], axis=1)[:, None] / 32, ones)
    true_masks = encode(Masks.of(masks[:, None], ones), Views.of(np.tile(size, (80, 1))), size=size)
    save_layout(config.data.folder / "train.truth-boxes", manifest, true_boxes)
    save_layout(config.data.folder / "train.truth-segments", dataclasses.replace(manifest, kind="segments"), true_masks)
    return config


def with_layout(config: Config, **fields: object) -> Config:
    return dataclasses.replace(config, annotation=dataclasses.replace(config.annotation, **fields))


def test_boxes_beside_clusters(prepared: Config, capsys: pytest.CaptureFixture[str]) -> None:
    config = with_layout(prepared, layout="boxes")
    annotate.run(config)
    assert "against truth that was not used" in capsys.readouterr().out
    assert len(np.load(config.clusters_folder / "clusters.npy")) == 80
    manifest, objects = load_layout(config.layout_folder, check_beton(config.data.folder / "train.beton").digest)
    assert isinstance(objects, Boxes) and objects.corners.shape == (80, 4)
    assert manifest.method == "lost" and manifest.class_names == ["object"]
    assert 0.4 < manifest.report["CorLoc"] <= 1


def test_segments_without_clusters(prepared: Config, capsys: pytest.CaptureFixture[str]) -> None:
    config = with_layout(
        prepared, layout="segments", num_clusters=0, segments=SegmentsConfig(finder="k-means", num_segments=3)
    )
    annotate.run(config)
    assert "against truth that was not used" in capsys.readouterr().out
    assert not config.clusters_folder.exists()
    manifest, objects = load_layout(config.layout_folder, check_beton(config.data.folder / "train.beton").digest)
    assert manifest.num_classes == 3
    assert 0 < manifest.report["mIoU"] <= manifest.report["pixel accuracy"] <= 1
    out = rasterize_labels(
        objects, Views.of(np.full((80, 2), 32)), torch.empty(80, 32, 32, dtype=torch.uint8), num_classes=3
    )
    assert out.max() < 3  # every pixel has its class


@pytest.mark.parametrize("finder", ["lost", "normalised-cut", "stego"])
@pytest.mark.parametrize("crf", [False, True])
def test_segments_by_every_finder_go_on_from_what_is_there(
    prepared: Config, finder: str, crf: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = SegmentsConfig(finder=finder, num_segments=3, images=1280, crf=crf)  # type: ignore[arg-type]
    config = with_layout(prepared, layout="segments", num_clusters=0, segments=wanted)
    annotate.run(config)
    digest = check_beton(config.data.folder / "train.beton").digest
    manifest, objects = load_layout(config.layout_folder, digest)
    assert manifest.method == finder and manifest.parameters["crf"] is crf
    assert 0 < manifest.report["mIoU"] <= manifest.report["pixel accuracy"] <= 1
    (config.layout_folder / "manifest.json").unlink()
    monkeypatch.setattr("engine.segmentation.train_stego", None)  # not made again
    monkeypatch.setattr("engine.segmentation.regions.sample_regions", None)
    annotate.run(config)
    again = load_layout(config.layout_folder, digest)
    assert again.manifest == manifest and again.objects.segments() == objects.segments()


def test_several_boxes_an_image_are_compared_by_precision_and_recall(prepared: Config) -> None:
    config = with_layout(prepared, layout="boxes", boxes=BoxesConfig(finder="normalised-cut", objects=3))
    annotate.run(config)
    manifest, objects = load_layout(config.layout_folder, check_beton(config.data.folder / "train.beton").digest)
    assert manifest.method == "normalised-cut" and manifest.parameters["objects"] == 3
    assert objects.num_images == 80 and 80 <= len(objects.class_ids) <= 240
    assert {"CorLoc", "precision", "recall"} == manifest.report.keys()


def test_a_whole_layout_is_kept_and_a_damaged_one_made_again(
    prepared: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    config = with_layout(prepared, layout="boxes")
    annotate.run(config)
    capsys.readouterr()
    annotate.run(config)
    assert "annotate: already whole, skipped" in capsys.readouterr().out
    clusters = (config.clusters_folder / "clusters.npy").stat().st_mtime_ns
    before = (config.layout_folder / "boxes.npy").read_bytes()
    (config.layout_folder / "manifest.json").unlink()
    annotate.run(config)
    assert (config.layout_folder / "boxes.npy").read_bytes() == before
    assert (config.clusters_folder / "clusters.npy").stat().st_mtime_ns == clusters


def test_without_truth_nothing_is_said_of_it(
    prepared: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(prepared.data.folder, tmp_path / "data", ignore=shutil.ignore_patterns("*truth*", "*-boxes-*"))
    moved = dataclasses.replace(prepared, data=dataclasses.replace(prepared.data, folder=tmp_path / "data"))
    config = with_layout(moved, layout="boxes")
    annotate.run(config)
    assert "against truth" not in capsys.readouterr().out
    digest = check_beton(config.data.folder / "train.beton").digest
    assert load_layout(config.layout_folder, digest).manifest.report == {}


def test_an_encoder_of_whole_images_is_refused(prepared: Config) -> None:
    with pytest.raises(ValueError, match="pixels has no features of patches"):
        annotate.run(with_layout(prepared, layout="boxes", encoder="pixels"))
