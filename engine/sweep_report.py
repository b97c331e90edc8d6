"""The page's section about a sweep: the best point, what every axis does to it, the ten best, and their images.

Only rows that the same judge has seen are compared: they make a group, and nothing shows two groups."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from engine import charts
from engine.evidence import read_grid
from engine.metric_names import (
    METRICS,
    decimals,
    heading_of,
    leading,
    name_of,
    network_of,
    provenance,
    why_no_frechet_distance,
)
from engine.sweep_results import CONDITIONS, summarise

JUDGE = tuple(name for name in CONDITIONS if name != "protocol")
"""Rows that differ in one of these are not compared. A protocol is a name for some of them and of a point's axes."""

AXES = {
    "guidance_scale": "guidance scale w",
    "steps": "steps",
    "sampler": "sampler",
    "ema": "average of the weights",
    "eta": "eta, the noise of DDIM",
    "interval": "guidance interval",
}
NAMED = ("sampler", "ema", "interval")  # at places of equal distance
UNORDERED = ("sampler", "interval")
COST = {"evaluations": ("Evaluations an image", "↓"), "images_per_second": ("Images/s", "↑")}
TABLE_ROWS = 10
MOST_LINES = 4
LOGARITHMIC = 8  # from this ratio of the most steps to the fewest
GRID = 64


Point = Mapping[str, Any]
"""A row of `summarise`, with its `interval`: axes, metrics or None, deviations over the seeds or None."""


def sweep_section(rows: list[dict[str, Any]], grids: Mapping[str, Path]) -> list[dict[str, Any]]:
    """A group for every judge, in the order of their first rows: sweep.csv's rows, the key of each -> its images."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(name) for name in JUDGE), []).append(row)
    return [_group(members, grids) for members in groups.values()]


def _group(rows: list[dict[str, Any]], grids: Mapping[str, Path]) -> dict[str, Any]:
    metric = leading(rows)
    points = [{**point, "interval": _interval(point)} for point in summarise(rows)]
    points.sort(key=lambda point: point[metric])
    best, first = points[0], rows[0]
    values = {axis: _values(points, axis) for axis in AXES}
    axes = [axis for axis in AXES if len(values[axis]) > 1]
    sweep = Group(first["network"], first["backbone"], metric, points, values)
    shown = points[:TABLE_ROWS]
    return {
        "provenance": _provenance(rows),
        "conditions": _conditions(first),
        "note": "" if metric == "frechet_distance" else why_no_frechet_distance(first["reference_images"]),
        "best": {
            "name": name_of(metric, first["network"]),
            "value": best[metric],
            "deviation": best[f"{metric}_deviation"],
            "seeds": best["seeds"],
            "words": _words(best, AXES),
        },
        "axes": [sweep.along(axis) for axis in axes],
        "table": _table(sweep, shown, axes),
        "fixed": _words(best, [axis for axis in AXES if axis not in axes]) if axes else "",
        "count": len(points),
        "panels": _panels(sweep, axes, grids),
    }


def _interval(row: Mapping[str, Any]) -> tuple[float, float] | None:
    return None if row["interval_low"] is None else (row["interval_low"], row["interval_high"])


def _provenance(rows: list[dict[str, Any]]) -> str:
    first = rows[0]
    protocols = sorted({row["protocol"] for row in rows})
    text = provenance(first["network"], first["images"], first["reference_images"], first["reference"])
    return f"{text}, protocol{'s' if len(protocols) > 1 else ''} {' and '.join(protocols)}"


def _conditions(first: dict[str, Any]) -> str:
    """What else the rows of a group have in common."""
    parts = [
        f"After {first['trained_images']:,} training images (checkpoint {first['checkpoint']})",
        f"asked for {first['subjects']}",
    ]
    parts.append(f"guidance {first['guidance']}")
    if first["backbone"] is not None:
        parts.append(f"backbone {first['backbone']}")
    return "; ".join(parts)


@dataclass(frozen=True)
class Group:
    """The points of one judge, the best first, and the values of every axis in their order."""

    network: str
    backbone: str | None
    metric: str
    points: Sequence[Point]
    values: Mapping[str, Sequence[Any]]

    @property
    def best(self) -> Point:
        return self.points[0]

    def line(self, axis: str, through: Point) -> list[Point]:
        """The points that differ from `through` in this axis alone, in its order; a search leaves some out."""
        found = [point for point in self.points if _differ_only_in(axis, point, through)]
        return sorted(found, key=lambda point: self.values[axis].index(point[axis]))

    def spread(self, axis: str) -> float:
        """How much an axis matters at the best point: how far its values there lie apart."""
        distances = [point[self.metric] for point in self.line(axis, self.best)]
        return max(distances) - min(distances)

    def along(self, axis: str) -> dict[str, Any]:
        """The charts of an axis."""
        across = self._across(axis)
        line = self.shown(axis)
        alone = line != self.line(axis, self.best)
        context_axis, context = (None, []) if alone else self._context(axis)
        lines = [self._line(axis, _in_legend(context_axis, self.best), line, self.metric)]
        lines += [self._line(axis, _in_legend(context_axis, one[0]), one, self.metric, True) for one in context]
        place = self._place(axis, self.best)
        others = [other for other in AXES if other != axis and len(self.values[other]) > 1]
        held = f"through the best point: {_words(self.best, others)}" if others else ""
        if alone:
            held = "the best found at each value, whatever the others: no point differs from the best in this one alone"
        figures: list[tuple[Markup, str]] = []

        def add(title: str, network: str, shown: list[charts.Line], from_zero: bool) -> None:
            figure = charts.lines_chart(f"{title} ({network})", across, shown, place, from_zero)
            figures.append((figure, _caption(held, line, bars=any(one.deviations for one in shown))))

        add(name_of(self.metric, self.network), self.network, lines, from_zero=False)
        for key in ("kernel_distance", "inception_score"):
            if key != self.metric and any(point[key] is not None for point in line):
                network = network_of(key, self.network, self.backbone)
                add(name_of(key, self.network), network, [self._line(axis, "best", line, key)], from_zero=False)
        quality = [
            self._line(axis, METRICS[key][0], line, key)
            for key in ("precision", "recall", "coverage")
            if any(point[key] is not None for point in line)
        ]
        if quality:
            add("Fidelity and diversity", self.network, quality, from_zero=True)
        return {"name": AXES[axis], "figures": figures}

    def _context(self, axis: str) -> tuple[str | None, list[list[Point]]]:
        """The other axis that matters most, and what this one does at those of its values that come nearest to best."""
        others = [other for other in AXES if other != axis and len(self.line(other, self.best)) > 1]
        if not others:
            return None, []
        chosen = max(others, key=self.spread)
        # In the order of `points` the first ones are the best.
        found = {}
        for point in self.points:
            value = point[chosen]
            at_best = all(point[name] == self.best[name] for name in AXES if name not in (axis, chosen))
            if at_best and value != self.best[chosen] and value not in found:
                found[value] = self.line(axis, point)
        nearest = list(found)[: MOST_LINES - 1]
        return chosen, [found[value] for value in self.values[chosen] if value in nearest]

    def shown(self, axis: str) -> list[Point]:
        """The line through the best point; where a search has left it alone there, the best at each of the values."""
        line = self.line(axis, self.best)
        if len(line) > 1:
            return line
        found: dict[Any, Point] = {}
        for point in self.points:
            found.setdefault(point[axis], point)
        return [found[value] for value in self.values[axis]]

    def _place(self, axis: str, point: Point) -> float:
        value = point[axis]
        return float(self.values[axis].index(value) if axis in NAMED else value)

    def _across(self, axis: str) -> charts.Across:
        values = self.values[axis]
        places = range(len(values)) if axis in NAMED else values
        ticks = {float(place): _tick(axis, value) for place, value in zip(places, values, strict=True)}
        wide = axis == "steps" and values[-1] / values[0] >= LOGARITHMIC
        return charts.Across(AXES[axis], ticks, joined=axis not in UNORDERED, logarithmic=wide)

    def _line(self, axis: str, name: str, points: list[Point], key: str, pale: bool = False) -> charts.Line:
        points = [point for point in points if point[key] is not None]
        deviations = [math.nan if point[f"{key}_deviation"] is None else point[f"{key}_deviation"] for point in points]
        return charts.Line(
            name,
            [self._place(axis, point) for point in points],
            [point[key] for point in points],
            [] if pale or all(map(math.isnan, deviations)) else deviations,
            pale,
        )


def _differ_only_in(axis: str, point: Point, other: Point) -> bool:
    return all(point[name] == other[name] for name in AXES if name != axis)


def _values(points: Sequence[Point], axis: str) -> list[Any]:
    """Distinct, ascending; no interval comes first."""
    return sorted({point[axis] for point in points}, key=lambda value: (value is not None, value))


def _words(point: Point, axes: Sequence[str] | Mapping[str, Any]) -> str:
    return ", ".join(_word(axis, point[axis]) for axis in axes)


def _word(axis: str, value: Any) -> str:
    if axis == "guidance_scale":
        return f"w = {value:g}"
    if axis == "steps":
        return f"{value:g} step{'' if value == 1 else 's'}"
    if axis == "interval":
        return "guided everywhere" if value is None else f"guided where σ is {value[0]:g}–{value[1]:g}"
    return {"sampler": "{}", "ema": "EMA {:g}", "eta": "eta {:g}"}[axis].format(value)


def _in_legend(axis: str | None, point: Point) -> str:
    """What tells a line from the others; an only line has no legend."""
    if axis is None:
        return ""
    return _tick(axis, point[axis]) if axis == "interval" else _word(axis, point[axis])


def _tick(axis: str, value: Any) -> str:
    if axis == "interval":
        return "everywhere" if value is None else f"σ {value[0]:g}–{value[1]:g}"
    return value if axis == "sampler" else f"{value:g}"


def _caption(held: str, points: list[Point], bars: bool) -> str:
    """Where a chart's line lies, and what its bars are."""
    seeds = sorted({point["seeds"] for point in points})
    counts = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    text = "; ".join(filter(None, [held, f"bars: standard deviation over {counts} seeds" if bars else ""]))
    return text[:1].upper() + text[1:]


def _table(sweep: Group, shown: Sequence[Point], axes: list[str]) -> dict[str, Any]:
    """Cells as text, and whether one is the best of its column."""
    columns = [key for key in (*METRICS, *COST) if any(point.get(key) is not None for point in shown)]
    headings = [COST[key] if key in COST else heading_of(key, sweep.network, sweep.backbone) for key in columns]
    rows: list[list[tuple[str, bool]]] = [[] for _ in shown]
    for key, (_, better) in zip(columns, headings, strict=True):
        values = [point[key] for point in shown if point[key] is not None]
        target = (min if better == "↓" else max)(values)
        telling = len(set(values)) > 1
        places = 0 if key == "evaluations" else decimals(key, values)
        for row, point in zip(rows, shown, strict=True):
            if point[key] is None:
                row.append(("–", False))
                continue
            deviation = None if key in COST else point[f"{key}_deviation"]
            spread = "" if deviation is None else f" ± {deviation:.{places}f}"
            row.append((f"{point[key]:.{places}f}{spread}", telling and point[key] == target))
    labels = [_words(point, axes or AXES) for point in shown]
    return {"headings": headings, "rows": list(zip(labels, rows, strict=True))}


def _panels(sweep: Group, axes: list[str], grids: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Images of the best point and of the ends of two axes through it, of their first seed."""
    best = sweep.best
    asked = [("Best", best)]
    if "guidance_scale" in axes:
        line = sweep.shown("guidance_scale")
        asked += [("Least guidance", line[0]), ("Most guidance", line[-1])]
    if "steps" in axes:
        asked.append(("Fewest steps", sweep.shown("steps")[0]))
    panels: dict[str, dict[str, Any]] = {}
    for name, point in asked:
        key = point["key"]
        if key in panels:
            panels[key]["name"] += f", {name.lower()}"
        elif key in grids:
            panels[key] = {
                "name": name,
                "words": _words(point, axes or AXES),
                "value": f"{name_of(sweep.metric, sweep.network)} {point[sweep.metric]:.4g}",
                "best": point is best,
                "sheet": charts.sheet(read_grid(grids[key])[:GRID], 8),
            }
    return list(panels.values())
