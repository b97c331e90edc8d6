from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from engine import telemetry


def watched(monkeypatch: pytest.MonkeyPatch, terminal: bool, width: int = 120) -> str:
    """All that a person sees of ten steps of ten images, whose loss is known after the fifth."""
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=terminal, width=width, soft_wrap=True, highlight=False)
    monkeypatch.setattr(telemetry, "console", console)
    with telemetry.progress("train", 100) as advance:
        for number in range(10):
            if number == 5:
                advance.suffix = "loss 0.0312"
            advance(10)
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue())


def test_where_there_is_no_terminal_lines_end_in_what_the_caller_adds(monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = watched(monkeypatch, terminal=False).splitlines()
    assert re.fullmatch(r"train: 100/100 images, [0-9,]+ images/s, ETA 0:00:00, loss 0\.0312", line)


def test_nothing_added_leaves_no_comma(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "console", Console())
    with telemetry.progress("sample", 10) as advance:
        advance(10)
    assert capsys.readouterr().out.endswith("ETA 0:00:00\n")


@pytest.mark.parametrize("width", [80, 120])
def test_a_bar_ends_in_what_the_caller_adds_and_never_wraps(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    last = watched(monkeypatch, terminal=True, width=width).strip().split("\r")[-1]
    assert re.search(r"train .*100/100 .*images/s .*loss 0\.0312\s*$", last) and "\n" not in last
    assert len(last.rstrip()) <= width


def test_unwatched_processes_say_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with telemetry.progress("train", 10, visible=False) as advance:
        advance.suffix = "loss 1"
        advance(10)
    assert capsys.readouterr().out == ""
