"""Steps that were left out because their gradient was not finite."""

from __future__ import annotations

from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor


class Skipped(NamedTuple):
    images: list[int]
    """Images seen before each step that was left out since the last reading."""
    in_a_row: int
    """The most steps left out one after the other, those just before the last reading among them."""


class SkippedSteps:
    """Remembers flags on the device; the host sees them when they are read together."""

    def __init__(self) -> None:
        self._images: list[int] = []
        self._flags: list[Tensor] = []
        self._unbroken = 0

    def add(self, images: int, skipped: Tensor) -> None:
        """A step after `images` seen; skipped bool scalar."""
        self._images.append(images)
        self._flags.append(skipped)

    def read(self) -> Skipped:
        """Of the steps since the last reading."""
        if not self._flags:
            return Skipped([], 0)
        flags = torch.stack(self._flags).tolist()
        runs = [(skipped, len(list(steps))) for skipped, steps in groupby(flags)]
        if runs[0][0]:
            runs[0] = (True, runs[0][1] + self._unbroken)
        self._unbroken = runs[-1][1] if runs[-1][0] else 0
        images = [before for before, skipped in zip(self._images, flags, strict=True) if skipped]
        self._images, self._flags = [], []
        return Skipped(images, max((length for skipped, length in runs if skipped), default=0))
