from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from engine import top
from engine.config import save_config
from engine.recipes import quickstart


def make_run(folder: Path, logged: int = 0, saved: int = 0, total: int = 1000, minutes_ago: float = 0) -> Path:
    """A run's folder as a run leaves it, with the lock file of a process that has ended."""
    config = quickstart()
    training = dataclasses.replace(config.training, images=total)
    save_config(dataclasses.replace(config, run=folder, training=training), folder / "config.yaml")
    (folder / ".lock").write_text(json.dumps({"host": "here", "pid": 1, "started": "2026-01-01T00:00:00+00:00"}))
    if logged:
        row = {"images": logged, "loss": 0.03125, "gradient_norm": None, "images_per_second": 100.0, "mfu": 0.412}
        (folder / "log.jsonl").write_text(json.dumps({**row, "memory_gb": 2.34}) + '\n{"images": 99')
        then = time.time() - 60 * minutes_ago
        os.utime(folder / "log.jsonl", (then, then))
    if saved:
        checkpoint = folder / "checkpoints" / str(saved)
        checkpoint.mkdir(parents=True)
        (checkpoint / "state.json").write_text("{}")
        save_config(config, checkpoint / "config.yaml")  # as a checkpoint has it; it is no run
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Path]:
    held = make_run(tmp_path / "sweep" / "alive", logged=400, saved=300)
    make_run(tmp_path / "crashed", logged=400, saved=300)
    make_run(tmp_path / "saved", logged=300, saved=300, minutes_ago=60 * 50)
    make_run(tmp_path / "whole", logged=1000, saved=1000, minutes_ago=90)
    make_run(tmp_path / ".hidden")
    with (held / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield tmp_path


def test_the_state_is_read_from_the_files(runs: Path) -> None:
    found = {run.name: run for run in top.find_runs(runs)}
    states = {name: run.state for name, run in found.items()}
    assert list(states.items()) == [
        ("sweep/alive", "running"),
        ("crashed", "failed"),
        ("saved", "stopped"),
        ("whole", "finished"),
    ]
    alive = found["sweep/alive"]
    assert (alive.images, alive.total, alive.seconds_left) == (400, 1000, 6.0)
    assert alive.row["loss"] == 0.03125  # of the last whole line
    assert found["crashed"].seconds_left is None


def test_looking_leaves_the_lock_to_others(runs: Path) -> None:
    top.find_runs(runs)
    with (runs / "crashed" / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize(("minutes", "state"), [(1, "running"), (30, "failed")])
def test_without_a_lock_a_fresh_log_is_a_sign_of_life(minutes: float, state: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", logged=400, minutes_ago=minutes)
    (run / ".lock").unlink()
    assert top.read_run(run, "run").state == state


def test_a_run_before_its_first_line_and_one_whose_configuration_is_damaged(tmp_path: Path) -> None:
    make_run(tmp_path / "new")
    (make_run(tmp_path / "damaged", logged=400, saved=400) / "config.yaml").write_text("training: [")
    (tmp_path / "damaged" / "log.jsonl").write_bytes(b"\xff\xfe nonsense\n[1]\n")
    damaged, new = sorted(top.find_runs(tmp_path), key=lambda run: run.name)
    assert (new.state, new.images, new.total, new.updated) == ("stopped", 0, 1000, None)
    assert (damaged.state, damaged.images, damaged.total, damaged.row) == ("stopped", 400, None, {})
    assert "400 / ?" in shown(tmp_path, 160)


def shown(folder: Path, width: int) -> str:
    console = Console(width=width, record=True, file=open(os.devnull, "w"), highlight=False)  # noqa: SIM115
    console.print(top.overview(folder, width))
    return console.export_text()


def test_a_wide_table_says_everything(runs: Path) -> None:
    text = shown(runs, 160)
    alive, *_, whole = (line.split() for line in text.splitlines() if "●" in line or "✔" in line)
    assert alive[:3] == ["sweep/alive", "●", "running"]
    assert alive[4:] == ["40.0", "400", "/", "1.00k", "100", "6", "s", "0.0312", "–", "41.2", "2.3", "0", "s", "ago"]
    assert whole[-3:] == ["1:30", "h", "ago"]
    assert "2 d 2 h ago" in text and "1 running, 1 failed, 1 stopped, 1 finished" in text


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120])
def test_a_narrow_table_drops_columns_and_never_wraps(runs: Path, width: int) -> None:
    lines = [line for line in shown(runs, width).splitlines() if any(mark in line for mark in "●✖■✔")]
    assert len(lines) == 4 and all(len(line) <= width for line in lines)
    assert all(state in line for state, line in zip(top.STATES, lines, strict=True))


def test_once_is_printed_whole_into_a_pipe(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    top.main([str(runs), "--once"])
    said = capsys.readouterr().out
    assert "sweep/alive" in said and "updated" in said and "GB" in said and "\x1b" not in said


def test_a_folder_without_runs_and_none_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    top.main([str(tmp_path), "--once"])
    assert "no runs yet" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        top.main([str(tmp_path / "nowhere"), "--once"])
    assert "nowhere is no folder" in capsys.readouterr().err


def test_the_folder_of_a_run_shows_that_run(runs: Path) -> None:
    assert [run.name for run in top.find_runs(runs / "whole")] == ["whole"]


def test_durations_and_numbers_are_short() -> None:
    assert [top.duration(seconds) for seconds in (0, 59.9, 245, 7620, 266_400)] == [
        *("0 s", "59 s", "4:05 min", "2:07 h", "3 d 2 h")
    ]
    assert [top._short(images) for images in (0, 950, 64_000, 1_250_000, 640_000_000, 2 * 10**9)] == [
        *("0", "950", "64.0k", "1.25M", "640M", "2.00B")
    ]
