"""Objects of images one after another, by masked repetition: a finder finds one in each image, its patches are taken
out, and the finder looks again at what is left. MaskCut does so with normalised cut (Wang et al., Cut and learn for
unsupervised object detection and instance segmentation, CVPR 2023, arXiv 2301.11320).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from sgdm.annotate.lost import Lost
from sgdm.annotate.names import BoxFinder
from sgdm.annotate.normalised_cut import NormalisedCut

Finder = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Of the patches that are left, bool [B, N], those of an object, bool [B, N], and one that is surely on it, int64
[B, 1]. In an image where none is left, no patch."""

FINDERS: dict[BoxFinder, Callable[[Tensor], Finder]] = {"lost": Lost, "normalised-cut": NormalisedCut}
"""By method, the finder of features, float [B, D, N]."""

PAIRS = 2**22
"""Pairs of patches that a finder compares at once, which bounds its memory. On a CPU the fastest of 2**18 to 2**26."""

ROUNDS = 4
"""Rounds of _connected from one look at the device to the next. Batches of scenes are whole after three to seven."""

LARGEST_PART = 4
"""An object after the first has at most one in so many of the patches that are left: more is the background."""

SMALLEST_PART = 25
"""And at least one in so many of all patches: less is noise. Both were chosen by precision and recall on scenes."""


def find_objects(features: Tensor, method: BoxFinder = "lost", objects: int = 1) -> Tensor:
    """bool [B, objects, h, w]: the patches of up to so many objects an image, the first found first.

    features: float32 or float64 [B, D, h, w], as an encoder's `patches` gives them. Every image has a first object.
    It has no more from the first on that has more than a quarter of the patches left, or less than 1/25 of all.
    """
    pairs = features[0, 0].numel() ** 2
    parts = features.split(max(1, PAIRS // pairs))
    return torch.cat([_find(part, FINDERS[method], objects) for part in parts])


def _find(features: Tensor, finder: Callable[[Tensor], Finder], objects: int) -> Tensor:
    B, _, h, w = features.shape
    find = finder(features.flatten(2))
    left = torch.ones(B, h * w, dtype=torch.bool, device=features.device)
    masks = []
    for number in range(objects):
        found, seed = find(left)
        start = torch.zeros_like(left).scatter(1, seed, True) & left
        mask = _connected(found.view(B, h, w), start.view(B, h, w)).flatten(1)
        if number > 0:
            size = mask.sum(dim=1, keepdim=True)
            is_object = (LARGEST_PART * size <= left.sum(dim=1, keepdim=True)) & (SMALLEST_PART * size >= h * w)
            mask, left = mask & is_object, left & is_object
        masks.append(mask)
        left = left & ~mask
    return torch.stack(masks, dim=1).view(B, objects, h, w)


def _connected(mask: Tensor, start: Tensor) -> Tensor:
    """What of `mask` (bool [B, h, w]) hangs together with `start`, a part of it, over the sides of patches.

    A round reaches all of every run of patches in a row that is touched, then likewise in columns. So there are as
    many rounds as an object has bends, and few times when the host waits for the device.
    """
    in_rows, in_columns = _runs(mask), _runs(mask.mT)
    reached = start
    while True:
        before = reached
        for _ in range(ROUNDS):
            reached = _fill(_fill(reached, in_rows).mT, in_columns).mT
        if torch.equal(reached, before):
            return reached


def _runs(mask: Tensor) -> Tensor:
    """int64 [B, h, w]: the number of the run along a row, from 1 in each image, that a patch is in; 0 for none."""
    begins = mask & ~F.pad(mask, (1, -1))
    return begins.flatten(1).cumsum(dim=1).view_as(mask) * mask


def _fill(reached: Tensor, runs: Tensor) -> Tensor:
    """bool [B, h, w]: all patches of the runs that have a patch reached."""
    numbers = runs.flatten(1)
    touched = torch.zeros(len(runs), numbers.shape[1] + 1, dtype=torch.bool, device=runs.device)
    touched.scatter_(1, numbers * reached.flatten(1), True)
    touched[:, 0] = False  # patches of no run
    return touched.gather(1, numbers).view_as(runs)
