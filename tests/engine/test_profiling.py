from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.distributed import alone
from engine.profiling import profiled

RANKS = alone(torch.device("cpu"))


def train(steps: range | None, run: Path, total: int) -> None:
    with profiled(steps, run, RANKS) as step_done:
        for number in range(1, total + 1):
            with torch.profiler.record_function(f"number {number}"):
                torch.ones(8).sum()
            step_done()


def names(path: Path) -> set[str]:
    trace: dict[str, Any] = json.loads(path.read_text())
    return {event.get("name", "") for event in trace["traceEvents"]}


@pytest.mark.parametrize(("first", "last", "recorded"), [(1, 2, {1, 2}), (2, 2, {2}), (4, 5, {4, 5}), (5, 90, {5, 6})])
def test_only_the_asked_steps_are_recorded(
    first: int, last: int, recorded: set[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(range(first, last + 1), tmp_path, total=6)
    (path,) = (tmp_path / "profile").iterdir()
    assert path.name == "trace-0.json"
    assert {name for name in names(path) if name.startswith("number ")} == {f"number {step}" for step in recorded}
    said = capsys.readouterr().out
    assert "aten::sum" in said and f"profile: steps {first} to {last} -> {tmp_path / 'profile'}" in said


def test_a_run_that_ends_before_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(range(8, 10), tmp_path, total=6)
    assert not (tmp_path / "profile").exists()
    assert "nothing recorded, the run ended before step 8" in capsys.readouterr().out


def test_nothing_is_recorded_where_nothing_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(None, tmp_path, total=3)
    assert not list(tmp_path.iterdir()) and capsys.readouterr().out == ""
