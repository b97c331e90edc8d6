"""How a person and a file see long work move: a live line with rate and ETA, and the stage's time and memory."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from engine.config import Config, save_config
from sgdm.files import read_json, write_json

console = Console(highlight=False, soft_wrap=True)
errors = Console(highlight=False, soft_wrap=True, stderr=True)


def say(message: str) -> None:
    """A line for the person at the screen."""
    console.print(message, markup=False)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f} images/s" if task.speed else "-")


class Line:
    """What moves while work is done. This one is for the processes that nobody watches."""

    suffix = ""
    """What else is to be seen at the end of the line, from the next call on."""

    def __call__(self, images: int) -> None:
        """So many more are done."""


class _Lines(Line):
    """Progress where there is no terminal (a log file, a pipe): a line now and then instead of a moving bar."""

    def __init__(self, name: str, total: int, done: int, interval: float = 15.0) -> None:
        self.name, self.total, self.done, self.interval = name, total, done, interval
        self.first = done
        self.start = self.last = time.monotonic()

    def __call__(self, images: int) -> None:
        self.done += images
        now = time.monotonic()
        if now - self.last < self.interval and self.done < self.total:
            return
        self.last = now
        rate = (self.done - self.first) / max(now - self.start, 1e-9)
        left = int((self.total - self.done) / max(rate, 1e-9))
        say(
            f"{self.name}: {self.done:,}/{self.total:,} images, {rate:,.0f} images/s, "
            f"ETA {left // 3600}:{left // 60 % 60:02}:{left % 60:02}{self.suffix and ', '}{self.suffix}"
        )


class _Bar(Line):
    def __init__(self, bar: Progress, name: str, total: int, done: int) -> None:
        self.bar = bar
        self.task = bar.add_task(name, total=total, completed=done, suffix="")

    def __call__(self, images: int) -> None:
        self.bar.update(self.task, advance=images, suffix=self.suffix)


@contextmanager
def progress(name: str, total: int, done: int = 0, visible: bool = True) -> Iterator[Line]:
    """Yields `advance(images)`, which moves a live line: stage, images, images/s, ETA and `advance.suffix`."""
    if not visible:
        yield Line()
    elif not console.is_terminal:
        yield _Lines(name, total, done)
    else:
        columns = (  # on a narrow terminal the bar gives way, and no line ever wraps
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            _Rate(table_column=Column(no_wrap=True)),
            TimeRemainingColumn(table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[suffix]}", style="dim"),
        )
        with Progress(*columns, console=console, speed_estimate_period=60) as bar:
            yield _Bar(bar, name, total, done)


class PeakMemory:
    """Highest memory of this process and its children, in GB, sampled twice a second by a thread.

    Counts proportional set sizes where the system has them, so that shared pages count once."""

    def __init__(self) -> None:
        self.peak_gb = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.peak_gb = max(self.peak_gb, _memory_gb())

    def _watch(self) -> None:
        while not self._stop.wait(0.5):
            self.peak_gb = max(self.peak_gb, _memory_gb())


def _memory_gb() -> float:
    process = psutil.Process(os.getpid())
    total = 0
    for member in [process, *process.children(recursive=True)]:
        try:
            memory = member.memory_full_info()
            total += getattr(memory, "pss", memory.rss)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total / 1e9


@dataclass
class StageRecord:
    """What a stage fills in while it runs."""

    images: int = 0
    result: str = ""


@contextmanager
def stage(config: Config, name: str, visible: bool = True) -> Iterator[StageRecord]:
    """A stage that has passed its checks and begins: its configuration becomes the run's config.yaml.

    Its time and memory are added to stages.json when it succeeds, and a line says where its result is."""
    if visible:
        save_config(config, config.run / "config.yaml")
    record = StageRecord()
    start = time.monotonic()
    with PeakMemory() as memory:
        yield record
    if not visible:
        return
    seconds = time.monotonic() - start
    row: dict[str, Any] = {
        "seconds": round(seconds, 2),
        "peak_memory_gb": round(memory.peak_gb, 3),
        "images": record.images,
        "result": record.result,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if torch.cuda.is_available():
        row["peak_device_memory_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 3)
    path = config.run / "stages.json"
    stages = read_json(path) if path.exists() else {}
    stages[name] = row
    write_json(path, stages)
    say(f"{name}: done in {seconds:,.1f} s, peak memory {memory.peak_gb:.2f} GB -> {record.result}")


def skip(name: str, result: Path) -> None:
    """Says that a stage is whole already."""
    say(f"{name}: already whole, skipped -> {result}")
