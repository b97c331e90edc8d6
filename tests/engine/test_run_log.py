from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from engine.meters import PHASES
from engine.run_log import RunLog, last_row, summary

CPU = torch.device("cpu")


def reading(loss: float, norm: float = 0.8, skipped: int = 0) -> dict[str, Any]:
    return {
        "steps": 2,
        "skipped_steps": skipped,
        "loss": loss,
        "gradient_norm": norm,
        "loss_by_level": [loss] * 9 + [None],
        "step_ms": dict.fromkeys(PHASES, 0.5),
    }


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def events(run: Path) -> dict[str, list[tuple[int, float]]]:
    accumulator = EventAccumulator(str(run / "tensorboard")).Reload()
    return {
        tag: [(event.step, event.value) for event in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]
    }


@pytest.fixture
def log(tmp_path: Path) -> Callable[[int], RunLog]:
    return lambda images: RunLog(tmp_path, images, peak_images_per_second=1e6, device=CPU)


def test_a_line_is_on_disk_when_it_is_written_and_in_tensorboard(log: Callable[[int], RunLog], tmp_path: Path) -> None:
    with log(0) as opened:
        time.sleep(0.05)
        row = opened.write(100, 1e-4, reading(0.5))
        assert rows(tmp_path) == [row]
        assert events(tmp_path)["loss"] == [(100, 0.5)]
    assert row["images"] == 100 and row["loss"] == 0.5 and row["learning_rate"] == 1e-4
    assert 0.05 <= row["seconds"] < 5
    assert row["images_per_second"] == pytest.approx(100 / row["seconds"], rel=0.05)
    assert row["mfu"] == pytest.approx(row["images_per_second"] / 1e6, rel=0.01)
    assert row["loader_share"] == pytest.approx(0.001 / row["seconds"], rel=0.05)
    assert row["memory_gb"] > 0.05 and "device_memory_gb" not in row
    curves = events(tmp_path)
    assert curves["loss_by_level/0.0-0.1"] == [(100, 0.5)] and "loss_by_level/0.9-1.0" not in curves
    assert curves["step_ms/data"] == [(100, 0.5)] and "images" not in curves


def test_a_run_that_goes_on_drops_what_is_past_its_checkpoint(log: Callable[[int], RunLog], tmp_path: Path) -> None:
    with log(0) as first:
        for images, loss in ((100, 3.0), (200, 2.0), (300, 9.0)):
            first.write(images, 1e-4, reading(loss))
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"images": 400, "lo')  # a kill
    before = rows_of_whole_lines(tmp_path)
    with log(200) as second:
        assert rows(tmp_path) == before[:2]
        time.sleep(0.01)
        second.write(300, 1e-4, reading(1.0))
    assert [row["loss"] for row in rows(tmp_path)] == [3.0, 2.0, 1.0]
    assert rows(tmp_path)[2]["seconds"] > before[1]["seconds"]
    assert events(tmp_path)["loss"] == [(100, 3.0), (200, 2.0), (300, 1.0)]
    assert [path.name for path in tmp_path.glob(".*")] == []


def rows_of_whole_lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()[:-1]]


def test_the_last_row_is_the_last_whole_one(log: Callable[[int], RunLog], tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    assert last_row(path) is None
    path.write_text("")
    assert last_row(path) is None
    with log(0) as opened:
        for images in range(1, 200):
            opened.write(images, 1e-4, reading(1.0))
    with path.open("a") as file:
        file.write('{"images": 400, "lo')
    assert path.stat().st_size > 2**15
    assert (last_row(path) or {})["images"] == 199


def test_a_gradient_norm_that_is_not_finite_is_none_and_still_json(
    log: Callable[[int], RunLog], tmp_path: Path
) -> None:
    with log(0) as opened:
        opened.write(100, 1e-4, reading(1.0, norm=float("nan"), skipped=1))
    (row,) = rows(tmp_path)
    assert row["gradient_norm"] is None and "gradient_norm" not in events(tmp_path)
    assert summary(row).endswith("of peak, 1 of 2 steps skipped")


def test_a_summary_is_short() -> None:
    row = {"loss": 0.031234, "gradient_norm": 0.8123, "mfu": 0.4149, "skipped_steps": 0, "steps": 3}
    assert summary(row) == "loss 0.0312, grad 0.81, 41 % of peak"


def test_without_its_package_weights_and_biases_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"training\.wandb is set, but .* pip install wandb"):
        RunLog(tmp_path, 0, 1.0, CPU, wandb_config={})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_weights_and_biases_goes_on_with_the_same_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    identities = []
    for images in (0, 100):
        with RunLog(tmp_path, images, 1.0, CPU, wandb_config={"seed": 1}) as opened:
            opened.write(images + 100, 1e-4, reading(1.0))
        identities.append(json.loads((tmp_path / "wandb.json").read_text())["id"])
    assert identities[0] == identities[1]
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 2
