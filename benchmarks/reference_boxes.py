"""LOST and normalised cut as their papers have them, one image at a time in NumPy and SciPy: what tests and benchmark
compare sgdm.annotate.objects with."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import linalg, ndimage

Box = list[float]
Find = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, int]]
"""From features [n, D] of the patches left, and their numbers [n]: bool [n], those of an object, and the one of these
n that is surely on it."""


def find_boxes(features: np.ndarray, find: Find, objects: int = 1) -> list[Box]:
    """x0 y0 x1 y1, from 0 to 1, of up to so many objects of an image [D, h, w]."""
    _, h, w = features.shape
    rows = features.reshape(len(features), -1).T
    left = np.ones(h * w, bool)
    boxes: list[Box] = []
    while len(boxes) < objects and left.any():
        patches = np.flatnonzero(left)
        found, seed = find(rows[left], patches)
        mask = np.zeros(h * w, bool)
        mask[patches[found]] = True
        part = connected_part(mask.reshape(h, w), patches[seed])
        if boxes and (4 * part.sum() > left.sum() or 25 * part.sum() < h * w):
            break
        boxes.append(box_around(part))
        left &= ~part.ravel()
    return boxes


def connected_part(mask: np.ndarray, patch: int) -> np.ndarray:
    """What of bool [h, w] hangs together with a patch of it, over sides and not corners."""
    parts, _ = ndimage.label(mask)
    return parts == parts.flat[patch]


def box_around(mask: np.ndarray) -> Box:
    h, w = mask.shape
    y, x = np.nonzero(mask)
    return [x.min() / w, y.min() / h, (x.max() + 1) / w, (y.max() + 1) / h]


def lost(expansion: float, num_patches: int) -> Find:
    """The paper's k is a share of all patches of the image, of which there are `num_patches`."""
    k = max(1, round(expansion * num_patches))

    def find(rows: np.ndarray, patches: np.ndarray) -> tuple[np.ndarray, int]:
        similarity = rows @ rows.T
        degree = (similarity > 0).sum(axis=1)
        rarest = sorted(range(len(rows)), key=lambda patch: degree[patch])[:k]
        seed = rarest[0]
        expanded = {seed, *(patch for patch in rarest if similarity[seed, patch] > 0)}
        mask = similarity[sorted(expanded)].sum(axis=0) > 0
        mask[seed] = True
        return mask, seed

    return find


def normalised_cut(threshold: float) -> Find:
    def find(rows: np.ndarray, patches: np.ndarray) -> tuple[np.ndarray, int]:
        if len(rows) == 1:
            return np.ones(1, bool), 0
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        weights = np.where(unit @ unit.T >= threshold, 1.0, 1e-5)
        degrees = np.diag(weights.sum(axis=1))
        values, vectors = linalg.eigh(degrees - weights, degrees)
        if values[1] > 1 - 1e-3:  # all patches are linked: there is nothing to cut
            return np.ones(len(rows), bool), 0
        y = vectors[:, 1]
        seed = int(np.abs(y).argmax())
        above = y > y.mean()
        return above == above[seed], seed

    return find
