"""A case's figures on the screen."""

from __future__ import annotations

from collections.abc import Callable

from rich.table import Table
from rich.text import Text

from benchmarks.measure import Failure, Timing
from benchmarks.results import Measured

Cell = Callable[[Measured, Timing], str]
COLUMNS: dict[str, Cell] = {
    "median": lambda measured, timing: duration(timing.median),
    "spread": lambda measured, timing: _spread(timing),
    "speedup": lambda measured, timing: f"{timing.speedup:.2f}x" if timing.speedup is not None else "",
    "limit": lambda measured, timing: f"{measured.limit.seconds / timing.median:.0%}" if measured.limit else "",
    "images/s": lambda measured, timing: _images(measured, timing),
    # Where it is worth knowing: a peer that compiles.
    "first": lambda measured, timing: duration(timing.first_call) if timing.first_call >= 1 else "",
    "memory": lambda measured, timing: _memory(timing.peak_memory) if timing.peak_memory is not None else "",
}
LEGEND = """\
median, spread: of the time of a step; from the 20 % to the 80 % quantile.
speedup: against the first peer in the same rounds. limit: share of the limit reached.
first: making ready and the first step, compiling included. memory: most the peer held."""


def table_of(results: list[Measured]) -> Table:
    """A line for every peer under its comparison, then the limit; columns that say nothing are left out."""
    columns = {
        title: cell
        for title, cell in COLUMNS.items()
        if any(cell(measured, timing) for measured in results for timing in measured.timings.values())
    }
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
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
    """What a table has no room for: why peers failed, and how a share can be above 100 %."""
    lines = [
        f"{measured.comparison.name}: {name} failed: {figures.error}"
        for measured in results
        for name, figures in measured.peers.items()
        if isinstance(figures, Failure)
    ]
    shares = [m.limit.seconds / timing.median for m in results if m.limit for timing in m.timings.values()]
    if any(share > 1.05 for share in shares):
        lines.append(
            "Above 100 % of the limit: data lay in a cache, or was changed in place, where a processor's copy may "
            "first fetch what it overwrites."
        )
    return lines


def duration(seconds: float) -> str:
    """Three digits and a unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{_three_digits(seconds / size)} {unit}"
    return f"{_three_digits(seconds / 1e-9)} ns"


def _three_digits(value: float) -> str:
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:,.0f}"


def _memory(size: int) -> str:
    return f"{_three_digits(size / 1e9)} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def _spread(timing: Timing) -> str:
    """The middle three fifths of the samples."""
    return f"{(timing.quantile_80 - timing.quantile_20) / timing.median:.0%}" if timing.samples >= 3 else ""


def _images(measured: Measured, timing: Timing) -> str:
    images = measured.comparison.images
    return _three_digits(images / timing.median) if images is not None else ""
