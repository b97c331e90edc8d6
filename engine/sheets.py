"""Sheets of layouts beside the images drawn for them, and the colours of classes."""

from __future__ import annotations

import colorsys

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray

from sgdm.data.guides import NO_CLASS

GAP = 2  # pixels
PAPER = 255
NOWHERE = (58, 58, 64)
"""What a layout shows where there is nothing."""


def class_colours() -> NDArray[np.uint8]:
    """uint8 [256, 3]: the colour of each class, the same wherever it is drawn, and of NO_CLASS.

    The first 20 are tab20's; hues a golden ratio apart, in three shades by turns, go on from there.
    """
    shades = ((0.85, 0.95), (0.55, 0.8), (0.9, 0.6))  # saturation and value
    further = [colorsys.hsv_to_rgb(number * 0.618 % 1, *shades[number % 3]) for number in range(236)]
    colours = np.concatenate([colormaps["tab20"](np.arange(20))[:, :3], further])
    colours[NO_CLASS] = np.array(NOWHERE) / 255
    return np.rint(colours * 255).astype(np.uint8)


def layout_picture(layout: NDArray[np.uint8], segments: int) -> NDArray[np.uint8]:
    """uint8 [H, W, 3]: a box mask in white, or a label map in a colour a class."""
    if not segments:
        return np.where(layout[..., None] > 0, 255, np.array(NOWHERE)).astype(np.uint8)
    return class_colours()[layout]


def layout_lines(
    layouts: NDArray[np.uint8],
    images: NDArray[np.uint8],
    rows: NDArray[np.int64],
    segments: int,
    real: NDArray[np.uint8] | None = None,
) -> list[list[NDArray[np.uint8]]]:
    """Pictures uint8 [H, W, 3], a line for each layout: the layout, where given the real image that it is of, and the
    images drawn for it.

    layouts uint8 [n, H, W], images uint8 [n, H, W, 3], rows [n]: equal where the layout is one and the same; real
    uint8 [distinct rows, H, W, 3], by ascending row.
    """
    distinct, first = np.unique(rows, return_index=True)
    lines = []
    for position in np.argsort(first):
        line = [layout_picture(layouts[first[position]], segments)]
        line += [] if real is None else [real[position]]
        lines.append([*line, *images[rows == distinct[position]]])
    return lines


def image_sheet(images: NDArray[np.uint8], columns: int) -> NDArray[np.uint8]:
    """Images uint8 [n, H, W, 3] on one sheet, in lines of so many."""
    return layout_sheet([list(images[start : start + columns]) for start in range(0, len(images), columns)])


def layout_sheet(lines: list[list[NDArray[np.uint8]]]) -> NDArray[np.uint8]:
    """Lines of pictures on one sheet, uint8 [height, width, 3]."""
    H, W = lines[0][0].shape[:2]
    columns = max(map(len, lines))
    sheet = np.full((len(lines) * (H + GAP) - GAP, columns * (W + GAP) - GAP, 3), PAPER, np.uint8)
    for y, line in enumerate(lines):
        for x, picture in enumerate(line):
            sheet[y * (H + GAP) :, x * (W + GAP) :][:H, :W] = picture
    return sheet
