"""A training run's own record: log.jsonl, TensorBoard's event files and, where it is asked for, Weights & Biases."""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import torch
from torch.utils.tensorboard import SummaryWriter

from engine.meters import LEVELS
from engine.stopping import ResumeError
from sgdm.files import atomic_write, read_json, write_json

LOG = "log.jsonl"
TENSORBOARD = "tensorboard"
WANDB_ID = "wandb.json"

Row = dict[str, Any]
"""A line of the log. `images` seen and `seconds` trained so far, without the time between two starts; then of the
interval since the line before: `loss`, its mean; `loss_by_level`, the same by noise level (engine.meters);
`images_per_second`; `mfu`, model FLOPs utilisation: the share of the measured peak that the operations of forward and
backward pass took up; `steps`; `skipped_steps`; `step_ms`, milliseconds a step of each phase; `loader_share`, the part
of the time that waited for data; `gradient_norm`, the mean over steps, None where it is not finite. And
`learning_rate`; `memory_gb`, resident, of the first process; on CUDA `device_memory_gb`, the most that its
device has held."""


class RunLog:
    """Writes a line an interval, to every place at once. Of several processes only the first has one."""

    def __init__(
        self,
        run: Path,
        images: int,
        peak_images_per_second: float,
        device: torch.device,
        wandb_config: dict[str, Any] | None = None,
    ) -> None:
        """Goes on from `images` seen: what was logged past them is dropped, as is a line that a kill cut short.

        peak_images_per_second: of all devices together (engine.peak). wandb_config: report to Weights & Biases too,
        with this configuration; ValueError where the package is not installed."""
        self.path, self.images, self.device = run / LOG, images, device
        self.peak_images_per_second = peak_images_per_second
        if wandb_config is not None:
            check_wandb()
        self._wandb = None if wandb_config is None else _start_wandb(run, wandb_config)
        rows = [row for row in _read(self.path) if row["images"] <= images]
        with atomic_write(self.path) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        self._file = self.path.open("a", encoding="utf-8")
        self._tensorboard = SummaryWriter(str(run / TENSORBOARD), purge_step=images + 1)
        self.seconds = float(rows[-1]["seconds"]) if rows else 0.0
        self._last = time.monotonic()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()
        self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code=0 if kind is None or issubclass(kind, ResumeError) else 1)

    def write(self, images: int, learning_rate: float, reading: dict[str, Any]) -> Row:
        """Writes the interval that ends at `images` seen, and returns its line. reading: Meters.read(), of a finite
        loss."""
        assert math.isfinite(reading["loss"]), "a run that diverged ends before it is logged"
        now = time.monotonic()
        interval, self._last = now - self._last, now
        self.seconds += interval
        speed = (images - self.images) / interval
        self.images = images
        norm = reading["gradient_norm"]
        row: Row = {
            "images": images,
            "seconds": round(self.seconds, 3),
            "loss": reading["loss"],
            "images_per_second": round(speed, 2),
            "mfu": float(f"{speed / self.peak_images_per_second:.4g}"),
            "learning_rate": learning_rate,
            "gradient_norm": norm if math.isfinite(norm) else None,
            "steps": reading["steps"],
            "skipped_steps": reading["skipped_steps"],
            "loader_share": round(reading["step_ms"]["data"] * reading["steps"] / 1e3 / interval, 4),
            "step_ms": reading["step_ms"],
            "loss_by_level": reading["loss_by_level"],
            "memory_gb": round(psutil.Process().memory_info().rss / 1e9, 3),
        }
        if self.device.type == "cuda":
            row["device_memory_gb"] = round(torch.cuda.max_memory_allocated(self.device) / 1e9, 3)
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        scalars = _scalars(row)
        for name, value in scalars.items():
            self._tensorboard.add_scalar(name, value, images)
        self._tensorboard.flush()
        if self._wandb is not None:
            self._wandb.log(scalars, step=images)
        return row


def summary(row: Row) -> str:
    """What a live line shows of a log line: "loss 0.0312, grad 0.8, 41 % of peak"."""
    parts = [f"loss {row['loss']:.3g}"]
    if row["gradient_norm"] is not None:
        parts.append(f"grad {row['gradient_norm']:.2g}")
    parts.append(f"{100 * row['mfu']:.2g} % of peak")
    if row["skipped_steps"]:
        parts.append(f"{row['skipped_steps']} of {row['steps']} steps skipped")
    return ", ".join(parts)


def _scalars(row: Row) -> dict[str, float]:
    """The numbers of a line by name; the parts of one that has several as name/part."""
    scalars: dict[str, float] = {}
    for name, value in row.items():
        if name == "loss_by_level":
            parts = {f"/{n / LEVELS:.1f}-{(n + 1) / LEVELS:.1f}": loss for n, loss in enumerate(value)}
        else:
            parts = {f"/{part}": number for part, number in value.items()} if isinstance(value, dict) else {"": value}
        scalars |= {name + part: number for part, number in parts.items() if number is not None}
    del scalars["images"]  # they are the step
    return scalars


def _read(path: Path) -> list[Row]:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    return [row for line in lines if (row := _parsed(line)) is not None]


def last_row(path: Path) -> Row | None:
    """The last whole line of a log, however long the log is; None without one."""
    if not path.exists():
        return None
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 2**14))
        lines = file.read().decode("utf-8", errors="replace").splitlines()
    return next((row for line in reversed(lines) if (row := _parsed(line)) is not None), None)


def _parsed(line: str) -> Row | None:
    """None for the line that a kill cut short."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and "images" in row else None


def check_wandb() -> None:
    """ValueError where training.wandb cannot be had."""
    if importlib.util.find_spec("wandb") is None:
        raise ValueError(
            "training.wandb is set, but the package wandb is not installed: pip install wandb, or leave it out; "
            "TensorBoard has the same curves"
        )


def _start_wandb(run: Path, config: dict[str, Any]) -> Any:
    """Goes on with the run's own record there. W&B takes no step twice: of what is trained again after a kill, it
    keeps the first."""
    wandb = importlib.import_module("wandb")
    path = run / WANDB_ID
    if not path.exists():
        write_json(path, {"id": uuid.uuid4().hex})
    return wandb.init(
        project="sgdm", name=run.resolve().name, dir=str(run), id=read_json(path)["id"], resume="allow", config=config
    )
