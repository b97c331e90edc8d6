"""Training and sampling with boxes and with segments beside or instead of clusters."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine import annotate, evaluate, prepare, sample, train
from engine.annotation_config import SegmentsConfig, SelfSupervisionConfig
from engine.checkpoint import CheckpointError
from engine.config import Config
from engine.layout_file import LayoutFileError
from sgdm.annotate.layout import LayoutManifest, load_layout, save_layout
from sgdm.data.beton import check_beton
from sgdm.data.guides import NO_CLASS
from sgdm.ragged import Boxes, Masks, Views
from sgdm.raster import encode

SEGMENTS = 3


def boxes(count: int) -> Boxes:
    """Another box for each image, none for the last."""
    corners = [[[0.25 * (n % 3), 0.0, 0.25 * (n % 3) + 0.5, 0.5]] for n in range(count - 1)]
    return Boxes.of([*corners, []])


def segments(count: int) -> object:
    """Left halves of one class, right ones of another."""
    left = np.zeros((16, 16), bool)
    left[:, :8] = True
    images = [[left, ~left] for _ in range(count)]
    return encode(
        Masks.of(images, [[n % 3, (n + 1) % 3] for n in range(count)]), Views.of([[16, 16]] * count), size=(16, 16)
    )


@pytest.fixture(scope="module", params=["boxes", "segments"])
def trained(
    request: pytest.FixtureRequest, make_config: Callable[[Path], Config], tmp_path_factory: pytest.TempPathFactory
) -> Config:
    kind = request.param
    config = make_config(tmp_path_factory.mktemp(kind))
    clusters = 3 if kind == "boxes" else 0
    config = dataclasses.replace(
        config,
        annotation=dataclasses.replace(
            config.annotation,
            layout=kind,
            num_clusters=clusters,
            segments=SegmentsConfig(finder="k-means", num_segments=SEGMENTS),
            encoder="self-supervised",
            self_supervision=SelfSupervisionConfig(images=512),
        ),
        training=dataclasses.replace(config.training, flip=True),
    )
    prepare.run(config)
    write_layout(config)
    train.run(config)
    sample.run(config)
    evaluate.run(config)
    return config


def write_layout(config: Config) -> None:
    data = check_beton(config.data.folder / "train.beton")
    kind = config.annotation.layout
    if config.annotation.num_clusters:
        annotate.run(dataclasses.replace(config, annotation=dataclasses.replace(config.annotation, layout="none")))
    manifest = LayoutManifest(
        data_digest=data.digest,
        kind=kind,
        method="by hand",
        weights_digest="",
        class_names=["thing"] if kind == "boxes" else [str(n) for n in range(SEGMENTS)],
        seed=0,
        parameters={},
        versions={},
        report={},
    )
    objects = boxes(data.count) if kind == "boxes" else segments(data.count)
    save_layout(config.layout_folder, manifest, objects)


def test_log_tells_the_share_of_the_loader(trained: Config) -> None:
    rows = [json.loads(line) for line in (trained.run / "log.jsonl").read_text().splitlines()]
    assert all(0 <= row["loader_share"] < 1 for row in rows)


def test_samples_tell_their_layouts_and_examples_share_them(trained: Config) -> None:
    with np.load(trained.run / "samples" / "guidance-2.npz", allow_pickle=False) as file:
        found = dict(file)
    assert found["image"].shape == (12, 16, 16, 3) and found["layout"].shape == (12, 16, 16)
    with np.load(trained.run / "samples" / "guidance-2-examples.npz", allow_pickle=False) as file:
        assert file["image"].shape == (36, 16, 16, 3) and file["layout"].shape == (36, 16, 16)
        rows = file["row"].reshape(6, 6)
    assert (rows == rows[:, :1]).all() and rows[:, 0].tolist() == found["row"][:6].tolist()
    if trained.annotation.layout == "boxes":
        assert set(found["cluster"]) <= {0, 1, 2}
        assert set(np.unique(found["layout"])) <= {0, 1}
    else:
        assert set(found["cluster"]) == {-1}
        row = int(found["row"][0])
        assert (found["layout"][0, :, :8] == row % 3).all() and (found["layout"][0, :, 8:] == (row + 1) % 3).all()


def test_metrics_tell_how_far_boxes_are_followed(trained: Config) -> None:
    rows = json.loads((trained.run / "metrics.json").read_text())["results"]
    for row in rows:
        shares = [row.get("layout_agreement"), row.get("layout_agreement_by_chance")]
        if trained.annotation.layout == "boxes":
            assert all(0 <= share <= 1 for share in shares)
        else:
            assert shares == [None, None]


def test_the_report_shows_layouts_beside_what_was_drawn_for_them(trained: Config) -> None:
    page = (trained.run / "report.html").read_text(encoding="utf-8")
    assert '<section id="layouts">' in page
    assert "Layouts, real images and images drawn for the layouts" in page


def test_layouts_by_hand(trained: Config, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    thing = {"box": [0, 0, 0.5, 1]}
    if trained.annotation.layout == "boxes":
        entry = {"cluster": 1, "count": 3, "objects": [thing]}
    else:
        entry = {"count": 3, "objects": [{"class": 2, **thing}]}
    path.write_text(json.dumps({"images": [entry]}))
    asked = dataclasses.replace(trained, sampling=dataclasses.replace(trained.sampling, layout=path))
    sample.run(asked)
    with np.load(trained.run / "samples" / "mine-2.npz", allow_pickle=False) as file:
        assert file["image"].shape == (3, 16, 16, 3)
        here, elsewhere = (1, 0) if trained.annotation.layout == "boxes" else (2, NO_CLASS)
        assert (file["layout"][:, :, :8] == here).all() and (file["layout"][:, :, 8:] == elsewhere).all()
    with Image.open(trained.run / "samples" / "mine-2.png") as page:
        assert page.size == (4 * 16 + 3 * 2, 16)
    assert "layout: null" in (trained.run / "config.yaml").read_text()  # the run's own samples stay its samples
    path.write_text(json.dumps({"images": [{"objects": [{"box": [0, 0, 2, 1]}]}]}))
    with pytest.raises(LayoutFileError, match="image 0 objects 0 box 2"):
        sample.run(asked)


def test_a_checkpoint_of_other_layouts_is_refused(trained: Config) -> None:
    data = check_beton(trained.data.folder / "train.beton")
    folder = trained.layout_folder
    manifest = load_layout(folder, data.digest).manifest
    objects = boxes(data.count) if trained.annotation.layout == "boxes" else segments(data.count)
    changed = objects.corners * 0.5 if isinstance(objects, Boxes) else (objects.class_ids + 1) % 3
    name = "corners" if isinstance(objects, Boxes) else "class_ids"
    save_layout(folder, manifest, dataclasses.replace(objects, **{name: changed}))
    with pytest.raises(CheckpointError, match="was trained on layout"):
        train.run(trained)
    save_layout(folder, manifest, objects)


def test_a_run_without_layouts_cannot_draw_them(make_config: Callable[[Path], Config], tmp_path: Path) -> None:
    config = make_config(tmp_path)
    for stage in (prepare, annotate, train):
        stage.run(config)
    asked = dataclasses.replace(config, sampling=dataclasses.replace(config.sampling, layout=tmp_path / "mine.json"))
    with pytest.raises(ValueError, match=r"annotation\.layout is none.*mine\.json cannot be drawn"):
        sample.run(asked)
