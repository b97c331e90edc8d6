"""What steps leave on the device, read once a log interval."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
import torch.distributed
from torch import Tensor

from engine.distributed import Ranks


@dataclass(frozen=True)
class Interval:
    """Steps since the last reading."""

    losses: list[float]
    """Means over the global batch, of the steps that were taken."""
    gradient_norm: float | None
    """Mean, of the steps that were taken; None where none was."""
    skipped: list[int]
    """Images seen before each step that was left out."""
    in_a_row: int
    """Steps left out one after the other, up to now or longer ago, at most."""

    @property
    def loss(self) -> float | None:
        """None where no step was taken."""
        return float(np.mean(self.losses)) if self.losses else None


class Record:
    """Scalars of steps, kept as the device's tensors until they are read together."""

    def __init__(self) -> None:
        self._images: list[int] = []
        self._scalars: list[Tensor] = []
        self._unbroken = 0  # steps left out just before the interval

    def add(self, images: int, loss: Tensor, gradient_norm: Tensor | float, skipped: Tensor | float) -> None:
        """A step after `images`: this process's mean loss, the norm of the whole gradient, 1 where it was left out."""
        self._images.append(images)
        scalars = [
            torch.as_tensor(value, dtype=torch.float32, device=loss.device) for value in (gradient_norm, skipped)
        ]
        self._scalars.append(torch.stack([loss, *scalars]))

    def read(self, ranks: Ranks) -> Interval:
        """Everything since the last reading; all processes must call it."""
        scalars = torch.stack(self._scalars)
        if ranks.world_size > 1:
            losses = scalars[:, 0].contiguous()
            torch.distributed.all_reduce(losses)
            scalars[:, 0] = losses / ranks.world_size
        loss, norm, skipped = scalars.double().cpu().numpy().T  # the one host sync
        left_out, images = skipped > 0, self._images
        runs = [(out, len(list(steps))) for out, steps in groupby(left_out)]
        if runs[0][0]:
            runs[0] = (True, runs[0][1] + self._unbroken)
        self._unbroken = runs[-1][1] if runs[-1][0] else 0
        self._images, self._scalars = [], []
        taken = ~left_out
        return Interval(
            losses=loss[taken].tolist(),
            gradient_norm=float(norm[taken].mean()) if taken.any() else None,
            skipped=[before for before, out in zip(images, left_out, strict=True) if out],
            in_a_row=max((length for out, length in runs if out), default=0),
        )
