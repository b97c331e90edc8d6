"""One box an image where its object is, from dense features alone: LOST (Simeoni et al., Localizing objects with
self-supervised transformers and no labels, BMVC 2021, arXiv 2109.14279), for a batch of images at once.

Two patches are alike where the inner product of their features is positive. The patch that is like the fewest
others, the seed, is on the object: objects cover less of an image than what is behind them. The object is what is
alike to the seed and to the other rare patches that are like the seed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

EXPANSION = 1 / 12
"""k of the seed expansion, as a share of the patches: the paper's 100, of the 1,200 that a 640 x 480 image has."""


def find_boxes(features: Tensor, expansion: float = EXPANSION) -> Tensor:
    """float64 [B, 4]: x0 y0 x1 y1 of the box that LOST finds in each image, half-open, in [0, 1] of the image.

    features: float [B, D, h, w], as an encoder's `patches` gives them. The arithmetic is theirs: what is decided by
    a sign or a rank may differ between devices where features differ in their last bits. On equal degrees the
    first patch in row-major order counts as the rarer one.
    """
    return _boxes_around(_object_masks(features, expansion))


def _object_masks(features: Tensor, expansion: float) -> Tensor:
    """bool [B, h, w]: the connected part of the object that holds the seed."""
    B, _, h, w = features.shape
    rows = features.flatten(2).transpose(1, 2)
    similarity = rows @ rows.transpose(1, 2)
    alike = similarity > 0
    rarest = alike.sum(dim=2).sort(dim=1, stable=True).indices
    seed = rarest[:, :1]
    candidates = rarest[:, : max(1, round(expansion * h * w))]
    # The rows of the affinity that belong to seed and candidates; the seed itself is always expanded.
    of_seed = alike.gather(1, seed[:, :, None].expand(-1, -1, h * w))[:, 0]
    expanded = torch.zeros_like(of_seed).scatter(1, candidates, of_seed.gather(1, candidates)).scatter(1, seed, True)
    total = (expanded[:, None].to(similarity.dtype) @ similarity)[:, 0]
    at_seed = torch.zeros_like(of_seed).scatter(1, seed, True)
    return _connected((total > 0).view(B, h, w), at_seed.view(B, h, w))


def _connected(mask: Tensor, start: Tensor) -> Tensor:
    """What of `mask` (bool [B, h, w]) hangs together with `start`, over the sides of patches; `start` belongs to it."""
    reached = start
    while True:
        across = F.pad(reached, (1, 1, 1, 1))
        beside = across[:, 1:-1, :-2] | across[:, 1:-1, 2:] | across[:, :-2, 1:-1] | across[:, 2:, 1:-1]
        grown = reached | (beside & mask)
        if bool((grown == reached).all()):
            return reached
        reached = grown


def _boxes_around(masks: Tensor) -> Tensor:
    """float64 [B, 4], x0 y0 x1 y1 in [0, 1], around what is set in bool [B, h, w], in each image something."""
    columns, rows = masks.any(dim=1), masks.any(dim=2)
    corners = []
    for line in (columns, rows):
        size = line.shape[1]
        first = line.int().argmax(dim=1)
        last = size - line.flip(1).int().argmax(dim=1)
        corners.append(torch.stack([first, last], dim=1).double() / size)
    return torch.stack([corners[0][:, 0], corners[1][:, 0], corners[0][:, 1], corners[1][:, 1]], dim=1)


def corloc(boxes: np.ndarray, truth: Sequence[np.ndarray]) -> float:
    """Share of images whose box [N, 4] has an IoU of at least one half with some true box ([M, 4] an image).

    LOST's measure. Images without a true box do not count; nan where none has one.
    """
    met = [intersection_over_union(box, true).max() >= 0.5 for box, true in zip(boxes, truth, strict=True) if len(true)]
    return float(np.mean(met)) if met else float("nan")


def intersection_over_union(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """float64 [M]: overlap of one box [4] with each of [M, 4], x0 y0 x1 y1 half-open."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    shared = np.maximum(sides, 0).prod(axis=1)
    union = (box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(axis=1) - shared
    return shared / np.maximum(union, np.finfo(np.float64).tiny)
