"""Pictures of the report: charts as inline SVG that follow the page's colours, images as one PNG sheet each."""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator
from PIL import Image

# Charts are drawn in stand-in colours, which become variables of the page's style sheet: light and dark for free.
INK, MUTED, LINE, ACCENT, SECOND, THIRD, FOURTH = (f"#01{i:02x}01" for i in range(1, 8))
VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    LINE: "line",
    ACCENT: "accent",
    SECOND: "second",
    THIRD: "third",
    FOURTH: "fourth",
}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "text.parse_math": False,
    "text.color": INK,
    "font.size": 11,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 2,
    "lines.markersize": 6,
    "legend.frameon": False,
}
WIDTH, HEIGHT = 440, 264
TITLE_LENGTH = 60  # characters that fit at full size
TILE = 64  # pixels of the page that an image of a sheet fills, as near as whole magnification comes
MOST_POINTS = 600  # of a curve: more than a chart has pixels for


@dataclass(frozen=True)
class Sheet:
    """Images side by side in one PNG: its address for <img src> and its width on the page in pixels."""

    address: str
    width: int


def sheet(images: np.ndarray, columns: int) -> Sheet:
    """Images uint8 [N,H,W,3] in rows of `columns`, transparent between; those above 64 pixels are reduced to 64."""
    side = min(TILE, images.shape[2])
    zoom = max(1, round(TILE / side))
    pitch = side + max(1, round(2 / zoom))
    rows = math.ceil(len(images) / columns)
    canvas = Image.new("RGBA", (columns * pitch - (pitch - side), rows * pitch - (pitch - side)))
    for number, pixels in enumerate(images):
        image = Image.fromarray(pixels)
        if image.width != side:
            image = image.resize((side, side), Image.Resampling.LANCZOS)
        canvas.paste(image, (number % columns * pitch, number // columns * pitch))
    buffer = io.BytesIO()
    canvas.save(buffer, format="PNG", optimize=True)
    address = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    return Sheet(address, canvas.width * zoom)


def guidance_chart(
    title: str, scales: Sequence[float], values: Sequence[float], unguided: float | None, floor: float | None
) -> Markup:
    """A distance against the guidance scale; a dashed line where no guidance is, a dotted one for real images."""
    with rc_context(STYLE):
        figure, axes = _chart(title, "guidance scale w", right=78)
        axes.plot(scales, values, color=ACCENT, marker="o")
        for number in range(len(values)):
            _label_beside(axes, scales, values, number)
        for level, name, dash in ((unguided, "unguided", (0, (5, 3))), (floor, "real images", (0, (1, 2)))):
            if level is not None:
                axes.axhline(level, color=MUTED, linewidth=1.3, linestyle=dash)
                axes.annotate(
                    name,
                    (1, level),
                    (6, 0),
                    xycoords=axes.get_yaxis_transform(),
                    textcoords="offset points",
                    va="center",
                    color=MUTED,
                    annotation_clip=False,
                )
        axes.set_xticks(scales, [f"{scale:g}" for scale in scales])
        axes.margins(x=0.07, y=0.16)
        if floor is not None or min(values) >= 0:
            axes.set_ylim(bottom=min(0, floor or 0))
        return _inline(figure, title)


@dataclass(frozen=True)
class Across:
    """What a chart shows its lines against: its name, and names of places along it."""

    name: str
    ticks: Mapping[float, str]
    joined: bool = True
    """False where the places have no order: points then, without lines."""
    logarithmic: bool = False


@dataclass(frozen=True)
class Line:
    """Values at places, with bars of deviations (nan for none) where there are any; a pale one is context."""

    name: str
    places: Sequence[float]
    values: Sequence[float]
    deviations: Sequence[float] = ()
    pale: bool = False


def lines_chart(
    title: str, across: Across, lines: Sequence[Line], best: float | None = None, from_zero: bool = True
) -> Markup:
    """At most four lines, named where there are several; a ring around what lies at the place `best`."""
    strong = [line for line in lines if not line.pale]
    with rc_context(STYLE):
        figure, axes = _chart(title, across.name, top=56 if len(lines) > 1 else 38)
        if across.logarithmic:
            axes.set_xscale("log")
        for number, (line, color) in enumerate(zip(lines, (ACCENT, SECOND, THIRD, FOURTH), strict=False)):
            # Points at named places stand beside each other, not on top of each other.
            aside = 0 if across.joined else 0.12 * (number - (len(lines) - 1) / 2)
            places = [place + aside for place in line.places]
            look: dict[str, Any] = {"color": color, "alpha": 0.55 if line.pale else 1, "zorder": 2 if line.pale else 3}
            if line.deviations:
                bars: dict[str, Any] = look | {"fmt": "none", "elinewidth": 1.3, "capsize": 3, "capthick": 1.3}
                axes.errorbar(places, line.values, yerr=line.deviations, **bars)
            axes.plot(
                places,
                line.values,
                marker="o",
                markersize=4 if line.pale else 5,
                linewidth=1.4 if line.pale else 2,
                linestyle="-" if across.joined else "none",
                label=line.name,
                **look,
            )
            if best in line.places and not line.pale:
                at = line.places.index(best)
                ring: dict[str, Any] = {"markerfacecolor": "none", "markeredgecolor": INK, "markeredgewidth": 1.5}
                axes.plot([places[at]], [line.values[at]], marker="o", markersize=12, zorder=4, **ring)
                if len(strong) == 1:
                    bar = line.deviations[at] if line.deviations else 0
                    _label_beside(axes, places, line.values, at, 12, 0 if math.isnan(bar) else bar)
        _name_places(axes, across)
        axes.margins(x=0.07 if across.joined else 0.2, y=0.16)
        if from_zero:
            axes.set_ylim(bottom=0, top=1.1 * max(max(line.values) for line in lines) or 1)
        axes.yaxis.set_major_formatter(FuncFormatter(_short))
        if len(lines) > 1:
            axes.legend(loc="upper left", bbox_to_anchor=(-0.02, 1.15), ncols=4, handlelength=1.2, columnspacing=1.2)
        return _inline(figure, title)


def _name_places(axes: Axes, across: Across) -> None:
    """Names from the left, without those that would lie on the one before."""
    places = sorted(across.ticks)
    along = np.log(places) if across.logarithmic else np.array(places, dtype=float)
    named = [0]
    for number in range(1, len(places)):
        if along[number] - along[named[-1]] >= 0.07 * (along[-1] - along[0]):
            named.append(number)
    axes.set_xticks([places[number] for number in named], [across.ticks[places[number]] for number in named])
    axes.xaxis.set_minor_locator(NullLocator())


def _label_beside(
    axes: Axes, places: Sequence[float], values: Sequence[float], at: int, distance: int = 8, bar: float = 0
) -> None:
    """A value's number, on the side of it where its line is not, and `distance` from its bar of this length."""
    value = values[at]
    neighbours = [*values[max(0, at - 1) : at], *values[at + 1 : at + 2]]
    above = not neighbours or value >= sum(neighbours) / len(neighbours)
    axes.annotate(
        f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}",
        (places[at], value + bar if above else value - bar),
        (0, distance if above else -distance - 8),
        textcoords="offset points",
        ha="center",
        zorder=5,
    )


def curve_chart(
    title: str, images: np.ndarray, values: np.ndarray, log_scale: bool = False, from_zero: bool = False
) -> Markup:
    """A measured curve against images seen: the raw values pale, their moving average on top."""
    smooth = _moving_average(values, width=max(1, len(values) // 25))
    stride = math.ceil(len(values) / MOST_POINTS)
    with rc_context(STYLE):
        figure, axes = _chart(title, "images seen")
        axes.plot(images[::stride], values[::stride], color=ACCENT, linewidth=1, alpha=0.3)
        axes.plot(images[::stride], smooth[::stride], color=ACCENT)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.xaxis.set_major_formatter(FuncFormatter(_short))
        if log_scale and values.min() > 0:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
            axes.yaxis.set_minor_formatter(NullFormatter())
        elif from_zero:
            axes.set_ylim(bottom=0, top=1.15 * float(values.max()) or 1)
        axes.yaxis.set_major_formatter(FuncFormatter(_short))
        return _inline(figure, title)


def level_chart(title: str, losses: np.ndarray) -> Markup:
    """Loss by noise level: one a bin of equal probability, from the least noise to the most; nan where unknown."""
    levels = (np.arange(len(losses)) + 0.5) / len(losses)
    with rc_context(STYLE):
        figure, axes = _chart(title, "noise level, as the quantile it is drawn by")
        axes.plot(levels, losses, color=ACCENT, marker="o", markersize=5)
        axes.set_xlim(0, 1)
        axes.margins(y=0.12)
        if np.nanmin(losses) > 0:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(FuncFormatter(_short))
        return _inline(figure, title)


def size_histogram(title: str, sizes: np.ndarray) -> Markup:
    """How many clusters have how many images; a dashed line where clusters of one size would be."""
    with rc_context(STYLE):
        figure, axes = _chart(title, "images in the cluster")
        axes.hist(sizes, bins=min(40, max(8, len(sizes) // 4)), color=ACCENT, alpha=0.85, rwidth=0.88)
        axes.axvline(float(sizes.mean()), color=MUTED, linewidth=1.3, linestyle=(0, (5, 3)))
        axes.annotate(
            f"mean {sizes.mean():,.0f}",
            (float(sizes.mean()), 1),
            (5, 0),
            xycoords=axes.get_xaxis_transform(),
            textcoords="offset points",
            va="top",
            color=MUTED,
        )
        axes.set_ylabel("clusters")
        axes.xaxis.set_major_formatter(FuncFormatter(_short))
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.margins(y=0.12)
        return _inline(figure, title)


def _chart(title: str, across: str, right: int = 12, top: int = 38) -> tuple[Figure, Axes]:
    """Margins are fixed, so that charts side by side line up; `right` and `top` in units of WIDTH."""
    figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72))  # an SVG unit is 1/72 inch
    left, bottom = 52, 44
    box = (left / WIDTH, bottom / HEIGHT, (WIDTH - left - right) / WIDTH, (HEIGHT - bottom - top) / HEIGHT)
    axes = figure.add_axes(box)
    size = min(12.5, 12.5 * TITLE_LENGTH / len(title))
    figure.text(4 / WIDTH, 1 - 14 / HEIGHT, title, fontsize=size, fontweight="bold", va="center")
    axes.set_xlabel(across)
    return figure, axes


def _inline(figure: Figure, description: str) -> Markup:
    """The SVG element alone: no prolog, no metadata, no style rule or id that would reach the rest of the page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    opening = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(description)}">'
    text = opening + text[text.index(">") + 1 :]
    for color, variable in VARIABLES.items():
        text = text.replace(color, f"var(--{variable})")
    return Markup(text)


def _moving_average(values: np.ndarray, width: int) -> np.ndarray:
    window = np.ones(2 * width - 1)
    weight = np.convolve(np.ones_like(values), window)[width - 1 :][: len(values)]
    return np.convolve(values, window)[width - 1 :][: len(values)] / weight


def _short(value: float, _: int | None = None) -> str:
    """An axis label: 250k, 1.5M."""
    for unit, suffix in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.4g}{suffix}"
    return f"{value:.4g}"
