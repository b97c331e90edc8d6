"""What goes wrong in a training run, injected: it is told, and nothing is lost."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine import annotate, checkpoint, console, prepare, train, trainer
from engine.config import Config, save_config
from engine.run_lock import RunLockedError, run_lock
from engine.stopping import RESUME, Stop
from engine.trainer import DivergedError
from sgdm.data.beton import check_beton
from sgdm.data.loader import epoch_order
from sgdm.diffusion.noise import TrainingNoise, training_noise


@pytest.fixture(scope="module")
def prepared(make_config: Any, tmp_path_factory: pytest.TempPathFactory) -> Config:
    config: Config = make_config(tmp_path_factory.mktemp("faults"))
    prepare.run(config)
    annotate.run(config)
    return config


@pytest.fixture
def config(prepared: Config, tmp_path: Path) -> Config:
    """20 steps of 16 images, checkpoints every fifth."""
    training = dataclasses.replace(
        prepared.training, images=320, checkpoint_images=80, precision="fp32", keep_checkpoints=9
    )
    return dataclasses.replace(prepared, run=tmp_path / "run", training=training)


def changed(config: Config, **fields: Any) -> Config:
    return dataclasses.replace(config, training=dataclasses.replace(config.training, **fields))


def rows(config: Config) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (config.run / "log.jsonl").read_text().splitlines()]


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the noise of batches infinite, those that begin after these numbers of images."""

    def spoil(first_images: set[int], times: int = 10**9) -> None:
        spoilt = []

        def noise(seed: int, first_image: int, *rest: Any) -> TrainingNoise:
            drawn = training_noise(seed, first_image, *rest)
            if first_image in first_images and len(spoilt) < times:
                spoilt.append(first_image)
                drawn.noise[0] = float("inf")
            return drawn

        monkeypatch.setattr(trainer, "training_noise", noise)

    return spoil


def test_steps_without_a_finite_gradient_are_left_out_and_told(
    config: Config, spoil: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil({48, 64, 160})
    train.run(config)
    log = rows(config)
    # A line is of one step here; a step that was left out has no loss to write.
    assert {row["images"] for row in log} == set(range(16, 321, 16)) - {64, 80, 176}
    assert all(np.isfinite(row["loss"]) for row in log)
    told = [json.loads(line) for line in (config.run / "skipped.jsonl").read_text().splitlines()]
    assert [row["images"] for row in told] == [48, 64, 160]
    count = check_beton(config.data.folder / "train.beton").count
    assert told[0]["ids"] == epoch_order(config.seed, 0, count)[48:64].tolist()
    assert "had no finite gradient" not in capsys.readouterr().out


def test_skipped_steps_are_counted_in_a_longer_line(config: Config, spoil: Any) -> None:
    spoil({48, 64})
    train.run(changed(config, log_images=80))
    assert [row["skipped_steps"] for row in rows(config)] == [2, 0, 0, 0]


def test_too_many_in_a_row_go_back_to_the_last_checkpoint_at_half_the_rate(
    config: Config, spoil: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil({112, 128, 144}, times=3)  # not again after the roll-back
    train.run(changed(config, skipped_in_a_row=3))
    shown = capsys.readouterr().out
    assert "3 steps in a row had no finite gradient at 160 images: back to" in shown
    assert "checkpoints/80 at 0.5 of the learning rate" in shown
    log = rows(config)
    assert [row["images"] for row in log] == list(range(16, 321, 16))
    full = config.training.learning_rate
    assert [round(row["learning_rate"] / full, 6) for row in log if row["images"] in (80, 96, 320)] == [1, 0.5, 0.5]
    state = json.loads((config.run / "checkpoints" / "320" / "state.json").read_text())
    assert state["learning_rate_factor"] == 0.5


def test_a_run_that_always_diverges_ends(config: Config, spoil: Any) -> None:
    spoil({112, 128, 144})
    with pytest.raises(DivergedError, match=r"3 steps in a row.*checkpoints/80, is kept.*lower training.learning_rate"):
        train.run(changed(config, skipped_in_a_row=3))


def test_a_run_that_is_to_stop_when_it_diverges_stops(config: Config, spoil: Any) -> None:
    spoil({112, 128, 144}, times=3)
    with pytest.raises(DivergedError, match=r"skipped.jsonl has the ids of the images"):
        train.run(changed(config, skipped_in_a_row=3, when_diverging="stop"))
    assert checkpoint.newest(config.run) == config.run / "checkpoints" / "80"


def test_being_asked_to_stop_saves_and_leaves_with_a_status_of_its_own(
    config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = dataclasses.replace(config, run=config.run.with_name("whole"))
    train.run(whole)
    calls: list[int] = []

    def noise(seed: int, first_image: int, *rest: Any) -> TrainingNoise:
        calls.append(first_image)
        if len(calls) == 7:  # in the middle of the seventh step
            os.kill(os.getpid(), signal.SIGTERM)
        return training_noise(seed, first_image, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(trainer, "training_noise", noise)
        with pytest.raises(SystemExit) as left:
            console.guard("train", lambda: train.run(config))
    assert left.value.code == RESUME
    assert "asked to stop (SIGTERM) at 128 images" in capsys.readouterr().err
    assert checkpoint.newest(config.run) == config.run / "checkpoints" / "128"
    train.run(config)
    ends = [
        json.loads((run / "checkpoints" / "320" / "state.json").read_text())["files"] for run in (whole.run, config.run)
    ]
    for name in ends[0].keys() - {"config.yaml"}:
        assert ends[0][name] == ends[1][name], name


def test_a_damaged_checkpoint_is_told_and_the_one_before_it_used(
    config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    train.run(changed(config, images=160))
    path = config.run / "checkpoints" / "160" / "state" / "00000.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    train.run(config)
    shown = capsys.readouterr().out
    assert "checkpoints/160 is damaged (state/00000.safetensors is not as it was written): going on" in shown
    assert "going on from" in shown and rows(config)[-1]["images"] == 320


def test_a_disk_that_fills_up_ends_the_run_and_keeps_what_there_is(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = checkpoint.save_file

    def refuse_the_second(tensors: Any, path: Path) -> None:
        if ".160.partial" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        save(tensors, path)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save_file", refuse_the_second)
        with pytest.raises(checkpoint.CheckpointError, match=r"160 images.*No space left.*checkpoints/80"):
            train.run(config)
    train.run(config)
    assert checkpoint.newest(config.run) == config.run / "checkpoints" / "320"


def test_data_that_disappear(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While they are read they stay mapped; the next start says what is missing."""
    folder = tmp_path / "data"
    shutil.copytree(config.data.folder, folder)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, folder=folder))

    def noise(seed: int, first_image: int, *rest: Any) -> TrainingNoise:
        if first_image == 64:
            (folder / "train.beton").unlink()
        return training_noise(seed, first_image, *rest)

    monkeypatch.setattr(trainer, "training_noise", noise)
    train.run(changed(config, images=160))
    with pytest.raises(ValueError, match=r"train.beton"):
        train.run(config)


def test_a_second_run_in_the_folder_is_refused(config: Config) -> None:
    entered, done = threading.Event(), threading.Event()

    def hold() -> None:
        with run_lock(config.run):
            entered.set()
            done.wait(60)

    other = threading.Thread(target=hold)
    other.start()
    entered.wait(60)
    try:
        with pytest.raises(RunLockedError, match=rf"in use by process {os.getpid()} on .*another folder with --run"):
            train.run(config)
    finally:
        done.set()
        other.join()
    assert not (config.run / "log.jsonl").exists()


def test_stop_is_no_error_of_the_user() -> None:
    assert not issubclass(Stop, ValueError)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(torch.cuda.device_count() == 1, reason="two processes need two GPUs, or none")
def test_a_process_that_dies_is_the_end_of_the_others_and_torchrun_starts_all_again(config: Config) -> None:
    config = changed(config, images=3_200, checkpoint_images=160, keep_checkpoints=2)
    path = config.run.with_suffix(".yaml")
    save_config(config, path)
    torchrun = Path(sys.executable).with_name("torchrun")
    process = subprocess.Popen(
        [torchrun, "--standalone", "--nproc-per-node", "2", "--max-restarts", "2", train.__file__, "--config", path],
        env={**os.environ, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while checkpoint.newest(config.run) is None:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    holder = json.loads((config.run / ".lock").read_text())["pid"]
    os.kill(holder, signal.SIGKILL)
    killed = time.monotonic()
    while json.loads((config.run / ".lock").read_text() or "{}").get("pid", holder) == holder:
        assert time.monotonic() - killed < 60 and process.poll() is None
        time.sleep(0.05)
    shown, _ = process.communicate()
    assert process.returncode == 0, shown
    assert "train: going on from" in shown
    assert [row["images"] for row in rows(config)] == list(range(16, 3_201, 16))
