"""kill -9 in the middle of a stage: the same command goes on from the last whole point and ends where it would have."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from engine import annotate, checkpoint, prepare
from engine.config import Config, save_config
from engine.sampling_config import SweepConfig
from engine.sweep_results import read
from sgdm.models.unet import UNet

ENGINE = Path(checkpoint.__file__).parent

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def start(program: str, config: Config) -> subprocess.Popen[str]:
    path = config.run.with_suffix(".yaml")
    save_config(config, path)
    return subprocess.Popen(
        [sys.executable, str(ENGINE / f"{program}.py"), "--config", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    shown, _ = process.communicate(timeout=600)
    assert process.returncode == 0, shown
    return shown


def kill_when(process: subprocess.Popen[str], happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not happened():
        assert process.poll() is None, f"ended by itself: {process.communicate()[0]}"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture
def annotated(config: Config) -> Config:
    long = dataclasses.replace(
        config, training=dataclasses.replace(config.training, images=3_200, checkpoint_images=320, log_images=160)
    )
    prepare.run(long)
    annotate.run(long)
    return long


def test_training_that_is_killed_ends_as_if_it_were_not(annotated: Config) -> None:
    whole = dataclasses.replace(annotated, run=annotated.run.with_name("whole"))
    finish(start("train", whole))
    process = start("train", annotated)
    kill_when(process, lambda: checkpoint.newest(annotated.run) is not None)
    last = checkpoint.newest(annotated.run)
    assert last is not None and checkpoint.images_of(last) < 3_200
    assert "going on from" in finish(start("train", annotated))
    one, two = (
        UNet.from_pretrained(run / "checkpoints" / "3200" / "ema-0.9").state_dict()
        for run in (whole.run, annotated.run)
    )
    assert all(one[name].equal(two[name]) for name in one)


def test_sampling_that_is_killed_keeps_the_scales_that_are_whole(annotated: Config) -> None:
    config = dataclasses.replace(
        annotated,
        training=dataclasses.replace(annotated.training, images=64),
        sampling=dataclasses.replace(annotated.sampling, guidance_scales=(0.0, 1.0, 2.0, 3.0), images=200, steps=40),
    )
    finish(start("train", config))
    first = config.run / "samples" / "guidance-0.npz"
    process = start("sample", config)
    kill_when(process, first.exists)
    before = first.stat().st_mtime_ns
    finish(start("sample", config))
    assert first.stat().st_mtime_ns == before
    assert len(list((config.run / "samples").glob("guidance-*.npz"))) == 4


def test_a_sweep_that_is_killed_goes_on_at_the_batch(annotated: Config) -> None:
    """The rows are those of a sweep in one piece, and what was there is not drawn again."""
    config = dataclasses.replace(
        annotated,
        training=dataclasses.replace(annotated.training, images=64, precision="fp32"),
        sampling=dataclasses.replace(annotated.sampling, images=96, steps=30, batch_size=8),
        sweep=SweepConfig(guidance="0,2", seeds=2),
    )
    finish(start("train", config))
    whole = dataclasses.replace(config, run=config.run.with_name("whole"))
    shutil.copytree(config.run, whole.run)
    finish(start("evaluate", whole))
    process = start("evaluate", config)
    batches = config.run / "sweep" / "batches"
    second = (batches / read(whole.run / "sweep.csv")[1]["key"]) / "000000000.npz"
    kill_when(process, second.exists)
    (row,) = read(config.run / "sweep.csv")
    before = second.stat().st_mtime_ns
    again = start("evaluate", config)
    kill_when(again, lambda: len(list(second.parent.glob("[0-9]*.npz"))) > 5)
    assert second.stat().st_mtime_ns == before
    finish(start("evaluate", config))
    rows, expected = read(config.run / "sweep.csv"), read(whole.run / "sweep.csv")
    assert rows[0] == row
    for one, other in zip(rows, expected, strict=True):
        for name in ("key", "kernel_distance", "inception_score", "precision", "coverage"):
            assert one[name] == other[name]


def test_extraction_that_is_killed_goes_on_at_the_shard(config: Config) -> None:
    config = dataclasses.replace(config, annotation=dataclasses.replace(config.annotation, shard_images=1))
    prepare.run(config)
    finish(start("annotate", config))
    whole = {path.name: path.read_bytes() for path in config.features_folder.glob("shard-*")}
    shutil.rmtree(config.data.folder / "annotations")
    process = start("annotate", config)
    kill_when(process, (config.features_folder / "shard-00005.json").exists)
    assert not (config.features_folder / "manifest.json").exists()
    before = (config.features_folder / "shard-00000.features.npy").stat().st_mtime_ns
    finish(start("annotate", config))
    assert (config.features_folder / "shard-00000.features.npy").stat().st_mtime_ns == before
    assert {path.name: path.read_bytes() for path in config.features_folder.glob("shard-*")} == whole


def test_ctrl_c_says_how_to_go_on(annotated: Config) -> None:
    process = start("train", annotated)
    deadline = time.monotonic() + 300
    while checkpoint.newest(annotated.run) is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    shown, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "the same command goes on from the last whole point" in shown
