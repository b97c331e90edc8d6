"""All runs under a folder at a glance, live. A program beside the stages."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
import yaml
from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from engine import checkpoint
from engine.console import guard
from engine.run_log import LOG, Row, last_row

State = Literal["running", "stopped", "failed", "finished"]
STATES: dict[State, str] = {  # in the order of the table
    "running": "[green]●[/] running",
    "failed": "[red]✖[/] failed",
    "stopped": "[yellow]■[/] stopped",
    "finished": "[blue]✔[/] finished",
}
FRESH = 300.0
"""Seconds since its last log line that a run without a lock counts as running."""
PIPE_WIDTH = 200


@dataclass(frozen=True)
class Run:
    """What the files of a run's folder say of it."""

    name: str
    state: State
    images: int
    total: int | None
    """None where config.yaml cannot be read."""
    row: Row
    """The last line of its log; empty before the first."""
    updated: float | None
    """When it was written, in seconds since 1970; None before the first."""

    @property
    def seconds_left(self) -> float | None:
        speed = self.row.get("images_per_second")
        if self.state != "running" or self.total is None or not speed:
            return None
        return max(self.total - self.images, 0) / float(speed)


def find_runs(folder: Path) -> list[Run]:
    """Every folder with a config.yaml, `folder` itself or below it, but not below another run: those that run first,
    then the others, each the latest first."""
    runs = [read_run(path, str(path.relative_to(folder)) if path != folder else path.name) for path in _folders(folder)]
    return sorted(runs, key=lambda run: (list(STATES).index(run.state), -(run.updated or 0), run.name))


def _folders(folder: Path) -> Iterator[Path]:
    for path, folders, files in os.walk(folder):
        if "config.yaml" in files:
            folders.clear()
            yield Path(path)
        folders[:] = [name for name in folders if not name.startswith(".")]


def read_run(folder: Path, name: str) -> Run:
    log = folder / LOG
    row = last_row(log) or {}
    saved = checkpoint.newest(folder)
    saved_images = 0 if saved is None else checkpoint.images_of(saved)
    images, total = max(saved_images, row.get("images", 0)), _total(folder / "config.yaml")
    updated = log.stat().st_mtime if row else None
    state: State
    if total is not None and saved_images >= total:
        state = "finished"
    elif _is_held(folder / ".lock", updated):
        state = "running"
    else:
        # What is stopped saves first. A run that logged more than it saved ended otherwise, and has lost that.
        state = "stopped" if images == saved_images else "failed"
    return Run(name, state, images, total, row, updated)


def _is_held(lock: Path, updated: float | None) -> bool:
    """Whether a process holds the run's lock; where there is none to ask, whether its log is fresh."""
    with contextlib.suppress(OSError), lock.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # let go at once, as the file closes
        except BlockingIOError:
            return True
        return False
    return updated is not None and time.time() - updated < FRESH


def _total(config: Path) -> int | None:
    try:
        return _read_total(config, config.stat().st_mtime_ns)
    except OSError:
        return None


@functools.lru_cache(maxsize=1024)
def _read_total(config: Path, changed: int) -> int | None:
    """training.images alone: a run of another version of the program, whose other fields are unknown, is shown too."""
    try:
        return int(yaml.safe_load(config.read_text(encoding="utf-8"))["training"]["images"])
    except (yaml.YAMLError, ValueError, KeyError, TypeError):
        return None


def overview(folder: Path, width: int) -> Group:
    """The table, as many of its columns as `width` has room for, and a line of how many runs there are."""
    runs = find_runs(folder)
    table = next(table for columns in _choices() if _fits(table := _table(runs, columns), width) or len(columns) < 4)
    counts = [f"{number} {state}" for state in STATES if (number := sum(run.state == state for run in runs))]
    said = ", ".join(counts) or "no runs yet: a run is a folder with a config.yaml"
    return Group(table, Text(f" {folder}: {said}   {time.strftime('%H:%M:%S')}", style="dim"))


Cell = Callable[[Run], Any]
COLUMNS: dict[str, Cell] = {
    "run": lambda run: Text(run.name, style="bold"),
    "state": lambda run: Text.from_markup(STATES[run.state]),
    "": lambda run: ProgressBar(total=run.total or 1, completed=run.images if run.total else 0, width=16),
    "%": lambda run: f"{100 * run.images / run.total:.1f}" if run.total else "–",
    "images": lambda run: f"{_short(run.images)} / {'?' if run.total is None else _short(run.total)}",
    "images/s": lambda run: _number(run.row.get("images_per_second"), ",.0f"),
    "ETA": lambda run: "–" if run.seconds_left is None else duration(run.seconds_left),
    "loss": lambda run: _number(run.row.get("loss"), ".4f"),
    "grad": lambda run: _number(run.row.get("gradient_norm"), ".2f"),
    "mfu %": lambda run: _number(run.row.get("mfu"), ".1f", 100),
    "GB": lambda run: _number(run.row.get("device_memory_gb", run.row.get("memory_gb")), ".1f"),
    "updated": lambda run: "–" if run.updated is None else f"{duration(max(time.time() - run.updated, 0))} ago",
}
DISPENSABLE = ("GB", "grad", "", "updated", "mfu %", "images", "images/s", "loss", "ETA")
"""What goes first where there is no room."""


def _choices() -> Iterator[list[str]]:
    return ([name for name in COLUMNS if name not in DISPENSABLE[:dropped]] for dropped in range(len(DISPENSABLE) + 1))


def _fits(table: Table, width: int) -> bool:
    return Console(width=1000).measure(table).maximum <= width


def _table(runs: list[Run], columns: list[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, header_style="dim", pad_edge=False)
    for name in columns:
        table.add_column(name, justify="left" if name in ("run", "state", "") else "right", no_wrap=True)
    for run in runs:
        table.add_row(
            *(COLUMNS[name](run) for name in columns), style="" if run.state in ("running", "failed") else "dim"
        )
    return table


def _number(value: Any, form: str, unit: float = 1) -> str:
    return format(unit * value, form) if isinstance(value, int | float) else "–"


def _short(images: int) -> str:
    """950, 64.0k, 1.25M, 2.00B."""
    for unit, suffix in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if images >= unit:
            return f"{images / unit:#.3g}{suffix}".replace(f".{suffix}", suffix)
    return str(images)


def duration(seconds: float) -> str:
    """12 s, 4:05 min, 2:07 h, 3 d 2 h."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02} min"
    if whole < 86400:
        return f"{whole // 3600}:{whole % 3600 // 60:02} h"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def run(
    folder: Annotated[Path, tyro.conf.Positional] = Path("runs"),
    once: bool = False,
    interval: float = 2.0,
) -> None:
    """All runs under a folder: state, progress, speed, loss, use of the device, time left. Ctrl-C ends it.

    Figures are those of a run's last log line. A run is `failed` where it ended with more logged than saved.

    Args:
        folder: where the runs are, at any depth; a run's own folder shows that run
        once: print the table once and end
        interval: seconds between two looks at the files
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: give the one that holds the runs")
    console = Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
    if once:
        console.print(overview(folder, console.width))
        return
    with contextlib.suppress(KeyboardInterrupt), Live(console=console, auto_refresh=False) as live:
        while True:
            live.update(overview(folder, console.width), refresh=True)
            time.sleep(interval)


def main(arguments: list[str] | None = None) -> None:
    guard("top", lambda: tyro.cli(run, prog="sgdm top", args=arguments))


if __name__ == "__main__":
    main()
