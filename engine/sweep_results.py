"""RUN/sweep.csv: what sweeps have measured, a row for each point and seed."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from sgdm.files import atomic_write

METRICS = (
    "frechet_distance",
    "spatial_frechet_distance",
    "kernel_distance",
    "inception_score",
    "precision",
    "recall",
    "density",
    "coverage",
    "backbone_frechet_distance",
    "replica_share",
)
POINT = ("guidance_scale", "steps", "sampler", "ema", "eta", "interval_low", "interval_high")
"""What tells points apart; with the seed, rows."""

CONDITIONS = (
    "trained_images",
    "checkpoint",
    "guidance",
    "subjects",
    "protocol",
    "images",
    "reference",
    "reference_images",
    "network",
    "backbone",
)
"""What must be equal for figures to be compared."""

COLUMNS: dict[str, Callable[[str], Any]] = {
    "key": str,
    "guidance_scale": float,
    "steps": int,
    "sampler": str,
    "ema": float,
    "eta": float,
    "interval_low": float,
    "interval_high": float,
    "seed": int,
    "trained_images": int,
    "checkpoint": str,
    "guidance": str,
    "subjects": str,
    "protocol": str,
    "images": int,
    "reference": str,
    "reference_images": int,
    "network": str,
    "backbone": str,
    **dict.fromkeys(METRICS, float),
    "evaluations": int,
    "seconds": float,
    "images_per_second": float,
}
"""In their order, and what reads a cell; an empty one is None."""


class TableError(ValueError):
    """A table that no sweep has written; the message names file, line and column."""


def read(path: Path) -> list[dict[str, Any]]:
    """The rows in the order in which they were measured; none where there is no table."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file)
        names = next(reader, [])
        if names != list(COLUMNS):
            raise TableError(
                f"{path} has the columns {', '.join(names)}, where {', '.join(COLUMNS)} were expected: move it away"
            )
        return [_row(path, number, cells) for number, cells in enumerate(reader, 2)]


def add(path: Path, row: dict[str, Any]) -> None:
    """Writes the table anew with this row at its end; one of the same key goes."""
    assert row.keys() <= COLUMNS.keys(), row.keys() - COLUMNS.keys()
    rows = [other for other in read(path) if other["key"] != row["key"]]
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="")
        writer.writeheader()
        writer.writerows([*rows, row])


def summarise(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each point under the same conditions: means of the metrics over its seeds, standard deviations as
    `<metric>_deviation` (None for one seed), and the number of `seeds`. Of several rows of a seed, such as one with and
    one without a search for replicas, the last counts."""
    groups: dict[tuple[Any, ...], dict[int, dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in (*CONDITIONS, *POINT)), {})[row["seed"]] = row
    return [_summary(list(group.values())) for group in groups.values()]


def _summary(group: list[dict[str, Any]]) -> dict[str, Any]:
    found = {**group[0], "seeds": len(group)}
    for name in (*METRICS, "images_per_second"):
        values = [row[name] for row in group]
        there = None not in values
        found[name] = float(np.mean(values)) if there else None
        found[f"{name}_deviation"] = float(np.std(values, ddof=1)) if there and len(group) > 1 else None
    return found


def _row(path: Path, number: int, cells: list[str]) -> dict[str, Any]:
    if len(cells) != len(COLUMNS):
        raise TableError(f"{path}, line {number}, has {len(cells)} cells, not {len(COLUMNS)}: remove it")
    row: dict[str, Any] = {}
    for (name, parse), cell in zip(COLUMNS.items(), cells, strict=True):
        try:
            row[name] = None if cell == "" else parse(cell)
        except ValueError as error:
            raise TableError(f"{path}, line {number}: {name} is {cell!r}: remove that line") from error
        if isinstance(row[name], float) and not math.isfinite(row[name]):
            raise TableError(f"{path}, line {number}: {name} is {cell!r}: remove that line")
    return row
