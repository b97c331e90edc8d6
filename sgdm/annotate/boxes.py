"""Boxes of the objects of images, found in dense features without labels, and how far they agree with the truth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from sgdm.annotate.names import BoxFinder
from sgdm.annotate.objects import find_objects
from sgdm.ragged import Boxes

ENOUGH = 0.5
"""The intersection over union from which on a box counts as a true one found."""


def find_boxes(features: Tensor, method: BoxFinder = "lost", objects: int = 1) -> Boxes:
    """Boxes in [0, 1] of the image around up to so many objects in each, at least one, the first found first.

    features: float [B, D, h, w] on any device, as an encoder's `patches` gives them. All objects are of class 0.
    """
    return boxes_around(find_objects(features, method, objects))


def boxes_around(masks: Tensor) -> Boxes:
    """Boxes, half-open, around what is set in each of bool [B, objects, h, w]; none where nothing is."""
    sides = []
    for line in (masks.any(dim=2), masks.any(dim=3)):  # columns, rows
        size = line.shape[2]
        first = line.int().argmax(dim=2)
        last = size - line.flip(2).int().argmax(dim=2)
        sides.append(torch.stack([first, last], dim=2).double() / size)
    corners = torch.stack(sides, dim=3).flatten(2).cpu().numpy()  # x0 y0 x1 y1
    found = masks.flatten(2).any(dim=2).cpu().numpy()
    return Boxes(
        corners=corners[found],
        image_offsets=np.concatenate([np.zeros(1, np.int64), found.sum(axis=1).cumsum()]),
        class_ids=np.zeros(found.sum(), np.int32),
    )


def concatenate(parts: Sequence[Boxes]) -> Boxes:
    """The images of all parts, one part after another."""
    counts = np.concatenate([np.diff(part.image_offsets) for part in parts])
    return Boxes(
        corners=np.concatenate([part.corners for part in parts]),
        image_offsets=np.concatenate([np.zeros(1, np.int64), counts.cumsum()]),
        class_ids=np.concatenate([part.class_ids for part in parts]),
    )


def corloc(boxes: np.ndarray, truth: Sequence[np.ndarray]) -> float:
    """Share of images whose box [N, 4] has an IoU of at least one half with some true box ([M, 4] an image).

    LOST's measure. Images without a true box do not count; nan where none has one.
    """
    met = [
        intersection_over_union(box, true).max() >= ENOUGH for box, true in zip(boxes, truth, strict=True) if len(true)
    ]
    return float(np.mean(met)) if met else float("nan")


def precision_and_recall(found: Boxes, truth: Boxes) -> tuple[float, float]:
    """Shares of boxes found that are true, and of true boxes that are found; nan where there are none.

    In each image as many pairs as can be are made of a box found and a true one with an IoU of at least one half
    (Hungarian method): a box is in one pair at most, so that two boxes on one object are one true and one false.
    """
    pairs = 0
    for boxes, true in zip(_of_images(found), _of_images(truth), strict=True):
        met = np.array([intersection_over_union(box, true) >= ENOUGH for box in boxes]).reshape(len(boxes), len(true))
        pairs += met[linear_sum_assignment(met, maximize=True)].sum()
    return _share(pairs, len(found.corners)), _share(pairs, len(truth.corners))


def intersection_over_union(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """float64 [M]: overlap of one box [4] with each of [M, 4], x0 y0 x1 y1 half-open."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    shared = np.maximum(sides, 0).prod(axis=1)
    union = (box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(axis=1) - shared
    return shared / np.maximum(union, np.finfo(np.float64).tiny)


def _of_images(boxes: Boxes) -> list[np.ndarray]:
    return np.split(boxes.corners, boxes.image_offsets[1:-1])


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
