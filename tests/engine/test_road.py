"""The whole road on a folder of images, stage by stage, as its user walks it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from engine import annotate, checkpoint, evaluate, prepare, sample, train
from engine.checkpoint import CheckpointError
from engine.config import Config, save_config
from sgdm.annotate.sets import AnnotationError
from sgdm.models.unet import UNet

STAGES = (prepare, annotate, train, sample, evaluate)


def walk(config: Config) -> None:
    save_config(config, config.run / "config.yaml")
    for stage in STAGES:
        stage.run(config)


@pytest.fixture(scope="module")
def walked(make_config: Callable[[Path], Config], tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The configuration of a run that went all the way, for tests that look at it."""
    config = make_config(tmp_path_factory.mktemp("walked"))
    walk(config)
    return config


def test_every_stage_leaves_what_it_promises(walked: Config) -> None:
    assert json.loads((walked.data.folder / "train.json").read_text())["unreadable"] == 1
    assert "broken.png" in (walked.data.folder / "train.unreadable.txt").read_text()
    clusters = np.load(walked.clusters_folder / "clusters.npy")
    assert clusters.shape == (96,) and set(clusters) == {0, 1, 2}
    rows = [json.loads(line) for line in (walked.run / "log.jsonl").read_text().splitlines()]
    assert [row["images"] for row in rows] == [16, 32, 48, 64]
    with np.load(walked.run / "samples" / "guidance-2.npz") as file:
        assert file["image"].shape == (12, 16, 16, 3) and file["image"].dtype == np.uint8
        assert set(file["cluster"]) <= {0, 1, 2}
    metrics = json.loads((walked.run / "metrics.json").read_text())
    assert [row["guidance_scale"] for row in metrics["results"]] == [0.0, 2.0]
    assert "efficientnet-lite0" in metrics["network"]
    assert set(json.loads((walked.run / "stages.json").read_text())) == {
        stage.__name__.split(".")[1] for stage in STAGES
    }
    assert (walked.run / "report.html").stat().st_size > 10_000


def test_averages_are_networks_that_anyone_can_load(walked: Config) -> None:
    last = checkpoint.newest(walked.run)
    assert last is not None and last.name == "64"
    slow, fast = (UNet.from_pretrained(last / name).state_dict() for name in ("ema-0.9", "ema-0.15"))
    assert any(not slow[name].equal(fast[name]) for name in slow)


def test_a_second_run_skips_what_is_whole(walked: Config, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in walked.run.rglob("*.npz")}
    for stage in STAGES:
        stage.run(walked)
    shown = capsys.readouterr().out
    for name in ("prepare", "annotate", "train", "sample", "evaluate"):
        assert f"{name}: already whole, skipped" in shown
    assert before == {path: path.stat().st_mtime_ns for path in walked.run.rglob("*.npz")}


def test_only_what_changed_is_done_again(walked: Config) -> None:
    kept = walked.run / "samples" / "guidance-2.npz"
    before = kept.stat().st_mtime_ns
    (walked.run / "samples" / "guidance-0.npz").unlink()
    with pytest.raises(ValueError, match=r"guidance-0 is missing as npz.*run sample first"):
        evaluate.run(walked)
    sample.run(walked)
    assert kept.stat().st_mtime_ns == before and (walked.run / "samples" / "guidance-0.npz").exists()


def test_samples_do_not_depend_on_the_batch(walked: Config, tmp_path: Path) -> None:
    shutil.copytree(walked.run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "samples")
    other = dataclasses.replace(
        walked, run=tmp_path / "run", sampling=dataclasses.replace(walked.sampling, batch_size=5)
    )
    sample.run(other)
    for name in ("guidance-0.npz", "guidance-2.npz"):
        with np.load(walked.run / "samples" / name) as one, np.load(other.run / "samples" / name) as two:
            np.testing.assert_array_equal(one["cluster"], two["cluster"])
            assert np.abs(one["image"].astype(int) - two["image"]).max() <= 1


def test_a_longer_training_goes_on(walked: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(walked.run, tmp_path / "run")
    longer = dataclasses.replace(walked, run=tmp_path / "run", training=dataclasses.replace(walked.training, images=96))
    train.run(longer)
    assert "going on from" in capsys.readouterr().out
    assert [path.name for path in sorted((longer.run / "checkpoints").iterdir())] == ["64", "96"]
    rows = [json.loads(line) for line in (longer.run / "log.jsonl").read_text().splitlines()]
    assert [row["images"] for row in rows] == [16, 32, 48, 64, 80, 96]


def test_a_run_cut_in_two_equals_one_in_one_piece(walked: Config, tmp_path: Path) -> None:
    """Data order, noise, averages and optimizer state all come back: the weights are equal bit for bit."""
    first = dataclasses.replace(walked, run=tmp_path / "run", training=dataclasses.replace(walked.training, images=32))
    train.run(first)
    train.run(dataclasses.replace(walked, run=tmp_path / "run"))
    whole, cut = (
        UNet.from_pretrained(run / "checkpoints" / "64" / "ema-0.15").state_dict() for run in (walked.run, first.run)
    )
    assert all(whole[name].equal(cut[name]) for name in whole)


def test_a_checkpoint_of_another_architecture_is_refused(walked: Config) -> None:
    wider = dataclasses.replace(walked, model=dataclasses.replace(walked.model, channels=16))
    for program in (train, sample):
        with pytest.raises(ValueError, match="another architecture: channels is 8 where 16 is expected"):
            program.run(wider)


def test_a_checkpoint_of_another_objective_is_refused(walked: Config) -> None:
    other = dataclasses.replace(walked, diffusion=dataclasses.replace(walked.diffusion, prediction="v"))
    for program in (train, sample):
        with pytest.raises(CheckpointError, match="another objective: prediction is eps where v is expected"):
            program.run(other)


def test_a_checkpoint_of_other_clusters_is_refused(walked: Config) -> None:
    other = dataclasses.replace(walked, annotation=dataclasses.replace(walked.annotation, clusters="random"))
    annotate.run(other)
    for program in (train, sample):
        with pytest.raises(CheckpointError, match="was trained on clusters"):
            program.run(other)


def test_a_damaged_file_of_samples_is_drawn_again(walked: Config) -> None:
    path = walked.run / "samples" / "guidance-0.npz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    sample.run(walked)
    assert path.read_bytes() == whole


def test_a_val_split_of_an_older_source_does_not_stay(walked: Config, tmp_path: Path) -> None:
    shutil.copytree(walked.data.folder, tmp_path / "data")
    for suffix in ("beton", "json"):
        shutil.copy(tmp_path / "data" / f"train.{suffix}", tmp_path / "data" / f"val.{suffix}")
    data = dataclasses.replace(walked.data, folder=tmp_path / "data")
    prepare.run(dataclasses.replace(walked, data=data))
    assert not (tmp_path / "data" / "val.beton").exists()


def test_a_checkpoint_of_other_averages_is_refused(walked: Config) -> None:
    other = dataclasses.replace(walked, training=dataclasses.replace(walked.training, ema_decays=(0.8,)))
    with pytest.raises(CheckpointError, match=r"has averages of ema_decays \(0\.9, 0\.15\), not of \(0\.8,\)"):
        train.run(other)


def test_other_data_than_the_annotation_is_refused(walked: Config, tmp_path: Path) -> None:
    shutil.copytree(walked.data.folder, tmp_path / "data")
    manifest_path = tmp_path / "data" / "train.json"
    manifest = json.loads(manifest_path.read_text())
    manifest_path.write_text(json.dumps({**manifest, "digest": "f" * 64}))
    other = dataclasses.replace(
        walked, run=tmp_path / "run", data=dataclasses.replace(walked.data, folder=tmp_path / "data")
    )
    with pytest.raises(AnnotationError, match=f"{manifest['digest']}.*{'f' * 64}"):
        train.run(other)


def test_a_truncated_beton_is_refused_by_every_stage(walked: Config, tmp_path: Path) -> None:
    shutil.copytree(walked.data.folder, tmp_path / "data")
    beton = tmp_path / "data" / "train.beton"
    beton.write_bytes(beton.read_bytes()[:-100])
    broken = dataclasses.replace(walked, data=dataclasses.replace(walked.data, folder=tmp_path / "data"))
    for program in (annotate, train, sample, evaluate):
        with pytest.raises(ValueError, match=r"train\.beton.*bytes"):
            program.run(broken)


def test_more_clusters_than_images(walked: Config) -> None:
    many = dataclasses.replace(walked, annotation=dataclasses.replace(walked.annotation, num_clusters=97))
    with pytest.raises(ValueError, match=r"num_clusters is 97.*96 images"):
        annotate.run(many)


def test_stages_out_of_order_name_the_one_before(config: Config) -> None:
    with pytest.raises(ValueError, match="prepare"):
        annotate.run(config)
    prepare.run(config)
    with pytest.raises(ValueError, match="Annotate first"):
        train.run(config)
    annotate.run(config)
    with pytest.raises(ValueError, match="run train first"):
        sample.run(config)
