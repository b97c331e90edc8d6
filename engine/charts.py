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
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
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
        for number, value in enumerate(values):
            neighbours = [*values[max(0, number - 1) : number], *values[number + 1 : number + 2]]
            above = not neighbours or value >= sum(neighbours) / len(neighbours)  # off the line, in both cases
            axes.annotate(
                f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}",
                (scales[number], value),
                (0, 8 if above else -16),
                textcoords="offset points",
                ha="center",
            )
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


def quality_chart(title: str, scales: Sequence[float], series: Mapping[str, Sequence[float]]) -> Markup:
    """Shares such as precision and recall against the guidance scale: at most four named lines."""
    with rc_context(STYLE):
        figure, axes = _chart(title, "guidance scale w", top=56)
        for (name, values), color in zip(series.items(), (ACCENT, SECOND, THIRD, FOURTH), strict=False):
            axes.plot(scales, values, color=color, marker="o", markersize=5, label=name)
        axes.set_xticks(scales, [f"{scale:g}" for scale in scales])
        axes.margins(x=0.07)
        axes.set_ylim(bottom=0)
        axes.legend(loc="upper left", bbox_to_anchor=(-0.02, 1.15), ncols=4, handlelength=1.2, columnspacing=1.2)
        return _inline(figure, title)


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
    figure.text(4 / WIDTH, 1 - 14 / HEIGHT, title, fontsize=12.5, fontweight="bold", va="center")
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
