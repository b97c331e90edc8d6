"""A case's figures on the screen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from benchmarks.comparison import Comparison
from benchmarks.limits import Limit
from benchmarks.measure import Failure, Timing


@dataclass(frozen=True)
class Measured:
    """A comparison, its limit and its peers' figures."""

    comparison: Comparison
    limit: Limit | None
    peers: dict[str, Timing | Failure]


Cell = Callable[[Measured, Timing], str]
COLUMNS: dict[str, Cell] = {
    "median": lambda measured, timing: duration(timing.median),
    "spread": lambda measured, timing: _spread(timing),
    "speedup": lambda measured, timing: f"{timing.speedup:.2f}x" if timing.speedup is not None else "",
    "of limit": lambda measured, timing: f"{measured.limit.seconds / timing.median:.0%}" if measured.limit else "",
    "images/s": lambda measured, timing: _images(measured, timing),
    # Where it is worth knowing: a peer that compiles.
    "first call": lambda measured, timing: duration(timing.first_call) if timing.first_call >= 1 else "",
    "memory": lambda measured, timing: f"{timing.peak_memory / 1e9:.2f} GB" if timing.peak_memory is not None else "",
}


def table_of(results: list[Measured]) -> Table:
    """A line for every peer under its comparison, then the limit; columns that say nothing are left out."""
    columns = {
        title: cell
        for title, cell in COLUMNS.items()
        if any(cell(measured, timing) for measured in results for timing in _timings(measured))
    }
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    table.add_column()
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for measured in results:
        table.add_row(Text(measured.comparison.name, style="bold"))
        for name, figures in measured.peers.items():
            if isinstance(figures, Failure):
                table.add_row(Text(f"  {name}"), Text("failed", style="red"))
            else:
                table.add_row(Text(f"  {name}"), *(cell(measured, figures) for cell in columns.values()))
        if measured.limit:
            table.add_row(f"  limit: {measured.limit.resource}", duration(measured.limit.seconds), style="dim")
    return table


def notes(results: list[Measured]) -> list[str]:
    """What a table has no room for: why peers failed, and what a share above 100 % means."""
    lines = [
        f"{measured.comparison.name}: {name} failed: {figures.error}"
        for measured in results
        for name, figures in measured.peers.items()
        if isinstance(figures, Failure)
    ]
    shares = [m.limit.seconds / timing.median for m in results if m.limit for timing in _timings(m)]
    if any(share > 1.05 for share in shares):
        lines.append("Above 100 % of the limit: the data came out of a cache, the limit is that of memory.")
    return lines


def duration(seconds: float) -> str:
    """Three digits and a unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{_three_digits(seconds / size)} {unit}"
    return f"{_three_digits(seconds / 1e-9)} ns"


def _three_digits(value: float) -> str:
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:,.0f}"


def _spread(timing: Timing) -> str:
    """The middle three fifths of the samples."""
    return f"{(timing.quantile_80 - timing.quantile_20) / timing.median:.0%}" if timing.samples >= 3 else ""


def _images(measured: Measured, timing: Timing) -> str:
    images = measured.comparison.images
    return _three_digits(images / timing.median) if images is not None else ""


def _timings(measured: Measured) -> list[Timing]:
    return [figures for figures in measured.peers.values() if isinstance(figures, Timing)]
