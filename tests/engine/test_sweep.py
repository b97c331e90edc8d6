"""A sweep as its user runs it: on a run of a few steps."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import numpy as np
import pytest
import timm
from safetensors.torch import save_file

from engine import annotate, checkpoint, drawing, evaluate, prepare, sample, sweep, train
from engine.config import Config, load_config, save_config
from engine.config_error import ConfigError
from engine.console import parse
from engine.judge import Judge
from engine.sampling_config import SweepConfig
from engine.sweep_results import read
from sgdm.files import read_json
from sgdm.metrics.statistics import StatisticsError


@pytest.fixture(scope="module")
def trained(make_config: Callable[[Path], Config], tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run whose weights have moved, with snapshots of two lengths."""
    config = make_config(tmp_path_factory.mktemp("trained"))
    training = dataclasses.replace(
        config.training, images=160, learning_rate=3e-3, ema_lengths=(0.05, 0.1), snapshot_images=32
    )
    sampling = dataclasses.replace(config.sampling, images=20)
    config = dataclasses.replace(config, training=training, sampling=sampling)
    prepare.run(config)
    annotate.run(config)
    train.run(config)
    return config


@pytest.fixture
def run(trained: Config, tmp_path: Path) -> Config:
    """The same in a folder of its own."""
    shutil.copytree(trained.run, tmp_path / "run")
    return dataclasses.replace(trained, run=tmp_path / "run")


def swept(config: Config, **axes: Any) -> list[dict[str, Any]]:
    evaluate.run(dataclasses.replace(config, sweep=SweepConfig(**axes)))
    return read(config.run / "sweep.csv")


def test_every_point_and_seed_has_a_row_and_a_picture(run: Config, capsys: pytest.CaptureFixture[str]) -> None:
    rows = swept(run, guidance="1,3", steps="2,3", sampler="ddim,heun", ema="0.9,0.07", seeds=2)
    assert len(rows) == len({row["key"] for row in rows}) == 32
    assert {row["evaluations"] for row in rows if row["guidance_scale"] == 1 and row["sampler"] == "heun"} == {3, 5}
    assert {row["evaluations"] for row in rows if row["guidance_scale"] == 3 and row["sampler"] == "ddim"} == {4, 6}
    for row in rows:
        assert row["images"] == 20 and row["reference"] == "train" and row["protocol"] == "custom"
        # 48 real images in 1,280 dimensions: said, not printed
        assert row["frechet_distance"] is None and row["kernel_distance"] is not None
        with np.load(sweep.grid_path(run.run, row["key"])) as file:
            assert file["image"].shape == (20, 16, 16, 3)
    shown = capsys.readouterr().out
    assert "no Fréchet distance: 48 real images span 47 of 1,280 dimensions" in shown
    assert "ema: length 0.07" in shown  # made of the snapshots
    assert "32 rows of this sweep" in shown
    values = [row["kernel_distance"] for row in rows]
    assert len(set(values)) > 24, "points of a sweep differ"
    assert not list((run.run / "sweep" / "batches").glob("*/*.npz"))
    assert not (run.run / "samples").exists(), "nothing is kept unless asked"


def test_what_is_measured_is_not_measured_again(run: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    first = swept(run, guidance="1,2", metric="kernel_distance")
    drawn = count_drawn(monkeypatch)
    assert swept(run, guidance="1:3:1", metric="kernel_distance")[:2] == first and drawn == [8, 8, 4]
    drawn.clear()
    swept(run, guidance="1:3:1", metric="kernel_distance")
    assert drawn == []


def count_drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images are drawn at a time, from now on."""
    drawn: list[int] = []
    draw = drawing.Painter.draw

    def counted(self: drawing.Painter, point: Any, subjects: Any, numbers: np.ndarray, towards: Any = None) -> Any:
        drawn.append(len(numbers))
        return draw(self, point, subjects, numbers, towards)

    monkeypatch.setattr(drawing.Painter, "draw", counted)
    return drawn


def test_figures_do_not_depend_on_the_batch_or_on_what_came_before(
    run: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted in the middle of a point and gone on with another batch size, the row is the same."""
    run = dataclasses.replace(run, training=dataclasses.replace(run.training, precision="fp32"))
    whole = swept(run, guidance="2", seeds=2)[-1]
    shutil.rmtree(run.run / "sweep")
    (run.run / "sweep.csv").unlink()
    draw, drawn = drawing.Painter.draw, []

    def interrupted(self: drawing.Painter, point: Any, *arguments: Any) -> Any:
        drawn.append(point.seed)
        if drawn.count(1) == 2:
            raise KeyboardInterrupt
        return draw(self, point, *arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(drawing.Painter, "draw", interrupted)
        swept(run, guidance="2", seeds=2)
    assert len(read(run.run / "sweep.csv")) == 1
    numbers = count_drawn(monkeypatch)
    smaller = dataclasses.replace(run, sampling=dataclasses.replace(run.sampling, batch_size=5))
    again = swept(smaller, guidance="2", seeds=2)[-1]
    assert numbers == [5, 5, 2], "of 20 images a batch of 8 was there"
    for name in ("kernel_distance", "inception_score"):
        assert again[name] == pytest.approx(whole[name], rel=2e-3)
    assert again["key"] == whole["key"]


def test_a_search_measures_a_part_and_finds_the_best_of_the_grid(run: Config) -> None:
    axes = {"guidance": "0:4:0.5", "steps": "2,3,4", "metric": "kernel_distance"}
    searched = swept(run, search="coarse-to-fine", **axes)
    assert len(searched) < 27
    whole = swept(run, **axes)
    assert len(whole) == 27 and whole[: len(searched)] == searched
    least = min(row["kernel_distance"] for row in whole)
    assert min(row["kernel_distance"] for row in searched) <= least + 0.01 * abs(least)


def test_the_command_of_the_readme(run: Config) -> None:
    save_config(run, run.run / "config.yaml")
    config = parse(
        "evaluate", ["--run", str(run.run), "--sweep.guidance", "0:2:1", "--sweep.steps", "2", "--num", "12"]
    )
    assert config.training == run.training and config.sampling.images == 12
    evaluate.run(config)
    assert len(read(run.run / "sweep.csv")) == 3
    # The run's own configuration stays what it was: the next command is no sweep.
    assert not parse("evaluate", ["--run", str(run.run)]).sweep.asked


def test_options_of_one_command_do_not_reach_the_next(run: Config) -> None:
    alone = dataclasses.replace(run, sampling=dataclasses.replace(run.sampling, cluster=1, guidance_scales=(1.0,)))
    sample.run(alone)
    assert load_config(run.run / "config.yaml").sampling.cluster == 1, "which the report is about"
    assert parse("evaluate", ["--run", str(run.run), "--sweep.guidance", "1,2"]).sampling.cluster is None


@pytest.mark.parametrize(("axis", "values"), [("eta", "0,2"), ("steps", "2,2000")])
def test_a_point_that_cannot_be_drawn_is_found_before_any_is(
    run: Config, axis: str, values: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = count_drawn(monkeypatch)
    with pytest.raises(ValueError, match=r"2\.0 is outside|2000"):
        swept(run, sampler="ddim", **{axis: values})
    assert drawn == [] and not (run.run / "sweep.csv").exists()


def test_other_precision_is_another_row(run: Config) -> None:
    rows = []
    for precision in ("fp32", "bf16"):
        training = dataclasses.replace(run.training, precision=precision)
        rows = swept(dataclasses.replace(run, training=training), guidance="2")
    assert len(rows) == 2


def test_what_kills_have_left_behind_is_removed(run: Config) -> None:
    stale = run.run / "sweep" / "batches" / "0123456789abcdef"
    stale.mkdir(parents=True)
    (stale / "000000000.npz").write_bytes(b"features")
    swept(run, guidance="1")
    assert not stale.exists()


def test_a_search_by_what_cannot_be_had_is_refused(run: Config) -> None:
    with pytest.raises(ValueError, match="frechet_distance has no figures here: no Fréchet distance: 48 real images"):
        swept(run, guidance="1:3:1", search="coarse-to-fine")
    with pytest.raises(ConfigError, match="there is nothing to search"):
        SweepConfig(search="coarse-to-fine")
    with pytest.raises(ConfigError, match=r"name the evaluation\.backbone too"):
        swept(run, guidance="1", metric="backbone_frechet_distance")


def test_samples_are_kept_where_asked(run: Config) -> None:
    kept = dataclasses.replace(run, evaluation=dataclasses.replace(run.evaluation, keep_samples=True))
    (row,) = swept(run, guidance="2")
    assert swept(kept, guidance="2") == [{**row, "seconds": ANY, "images_per_second": ANY}]
    with np.load(run.run / "samples" / f"sweep-{row['key']}.npz") as file:
        assert file["image"].shape == (20, 16, 16, 3) and set(file["cluster"]) <= {0, 1, 2}
        images = file["image"]
    sample.run(dataclasses.replace(run, sampling=dataclasses.replace(run.sampling, guidance_scales=(2.0,))))
    with np.load(run.run / "samples" / "guidance-2.npz") as file:
        np.testing.assert_array_equal(file["image"], images)


@pytest.mark.parametrize(
    ("ema", "message"),
    [
        ("0.5", r"has no average 0\.5\. It has the decays 0\.\d+, 0\.\d+, and snapshots of the lengths 0\.1, 0\.05"),
        ("0.2,0.97", r"has no average 0\.97\. It has the decays 0\.9, 0\.15"),
    ],
)
def test_an_average_that_there_is_not_is_answered_with_the_nearest(run: Config, ema: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        swept(run, ema=ema)


def test_without_snapshots_there_are_decays_alone(run: Config) -> None:
    shutil.rmtree(run.run / "snapshots")
    with pytest.raises(ValueError, match=r"It has the decays 0\.15, 0\.9, nearest first, and no snapshots"):
        swept(run, ema="0.07")


def test_a_sweep_of_a_run_without_a_checkpoint(run: Config) -> None:
    shutil.rmtree(run.run / "checkpoints")
    with pytest.raises(ValueError, match="has no checkpoint: run train first"):
        swept(run, guidance="1,2")


def test_statistics_of_real_images_are_made_once_and_checked(run: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    swept(run, guidance="1")
    files = [path for path in (run.data.folder / "statistics").glob("train-*.npz")]
    with np.load(files[0]) as file:
        arrays = dict(file)
    try:
        np.savez(files[0], **{**arrays, "identity": str(arrays["identity"]).replace("96 px", "97 px")})
        with pytest.raises(
            StatisticsError, match=r"network efficientnet-lite0 \(ImageNet, 97 px\), wanted are those of"
        ):
            swept(run, guidance="1")
    finally:
        np.savez(files[0], **arrays)


def test_replicas_are_looked_for(run: Config) -> None:
    asked = dataclasses.replace(run, evaluation=dataclasses.replace(run.evaluation, replicas=True))
    (row,) = swept(asked, guidance="1")
    assert 0 <= row["replica_share"] <= 1
    sample.run(asked)
    evaluate.run(asked)
    metrics = read_json(run.run / "metrics.json")
    # Without a val split there are no images that were not trained on, which it could be compared with.
    assert (
        all(0 <= one["replica_share"] <= 1 for one in metrics["results"]) and metrics["real"]["replica_share"] is None
    )


def test_a_backbone_judges_beside_the_network(run: Config, tmp_path: Path) -> None:
    name = "vit_tiny_patch16_224.augreg_in21k"
    network = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    evaluation = dataclasses.replace(
        run.evaluation, backbone=name, backbone_weights=tmp_path / "weights.safetensors", reference_images=None
    )
    (row,) = swept(dataclasses.replace(run, evaluation=evaluation), guidance="1")
    assert row["backbone"].startswith(name) and row["reference_images"] == 96
    assert row["backbone_frechet_distance"] is None, "96 images, 192 dimensions"


def test_autoguidance_leads_away_from_an_earlier_checkpoint(run: Config) -> None:
    """w = 1 is the network alone, whatever the weak one is; w = 0 the weak one alone."""
    first, last = sorted((run.run / "checkpoints").iterdir(), key=checkpoint.images_of)
    weak = dataclasses.replace(run, sampling=dataclasses.replace(run.sampling, weak_model=first / "ema-0.9"))
    by_weak = {row["guidance_scale"]: row for row in swept(weak, guidance="0:2:1")}
    plain = {row["guidance_scale"]: row for row in swept(run, guidance="1,2") if row["guidance"] == "classifier-free"}
    assert by_weak[1]["kernel_distance"] == plain[1]["kernel_distance"] != by_weak[0]["kernel_distance"]
    assert by_weak[2]["kernel_distance"] != plain[2]["kernel_distance"]
    itself = dataclasses.replace(run, sampling=dataclasses.replace(run.sampling, weak_model=last / "ema-0.9"))
    rows = [row for row in swept(itself, guidance="0,1") if "160/ema" in row["guidance"]]
    assert rows[0]["kernel_distance"] == rows[1]["kernel_distance"] == plain[1]["kernel_distance"]


def test_a_weak_model_of_other_conditions_is_refused(run: Config, tmp_path: Path) -> None:
    unconditional = drawing.UNet(dataclasses.replace(run.network, num_clusters=None))
    unconditional.save_pretrained(tmp_path / "weak")
    weak = dataclasses.replace(run, sampling=dataclasses.replace(run.sampling, weak_model=tmp_path / "weak"))
    with pytest.raises(ValueError, match=r"has num_clusters None, but .* has 3: give an earlier checkpoint"):
        swept(weak, guidance="2")


def test_pages_on_the_way_from_one_cluster_to_another(run: Config, capsys: pytest.CaptureFixture[str]) -> None:
    sampling = dataclasses.replace(run.sampling, interpolate=(0, 2), guidance_scales=(2.0,))
    sample.run(dataclasses.replace(run, sampling=sampling))
    assert (run.run / "samples" / "clusters-0-to-2-2.png").stat().st_size > 1000
    with pytest.raises(ConfigError, match=r"sampling.interpolate is \(0, 3\), but the clusters are 0 to 2"):
        dataclasses.replace(run, sampling=dataclasses.replace(run.sampling, interpolate=(0, 3)))


def test_one_cluster_alone_and_all_alike(run: Config) -> None:
    for asked, wanted in ({"cluster": 1}, {1: 20}), ({"clusters": "balanced"}, {0: 7, 1: 7, 2: 7}):
        sampling = dataclasses.replace(run.sampling, guidance_scales=(1.0,), images=21, **asked)
        sample.run(dataclasses.replace(run, sampling=dataclasses.replace(sampling, images=sum(wanted.values()))))
        with np.load(run.run / "samples" / "guidance-1.npz") as file:
            assert dict(zip(*np.unique(file["cluster"], return_counts=True), strict=True)) == wanted


def test_the_machine_is_checked_before_anything_is_measured(run: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np.linalg, "svd", lambda matrix, **options: np.zeros(3))
    with pytest.raises(ValueError, match="linear algebra under NumPy"):
        Judge(run, drawing.distributed.alone(drawing.torch.device("cpu")))
