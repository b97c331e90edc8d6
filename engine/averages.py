"""Averages of the weights: the ones that draw samples. They follow this process's part of the fp32 weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.ema import ema_update


class Averages:
    """Exponential moving averages in fp32, laid out as the masters that they follow (engine/shards.py).

    The decay of step n is min(decay, (1 + n) / (10 + n)), so that early averages forget the initial weights
    (the released SGDM code's ramp)."""

    def __init__(self, masters: Sequence[Tensor], decays: tuple[float, ...]) -> None:
        self.steps = 0
        self.shards = {decay: [master.detach().clone() for master in masters] for decay in decays}
        self._masters = masters

    @torch.no_grad()
    def update(self) -> None:
        """Once after each optimizer step. Nothing is gathered, and no process waits for another."""
        ramp = (1 + self.steps) / (10 + self.steps)
        ema_update(list(self.shards.values()), self._masters, [min(decay, ramp) for decay in self.shards])
        self.steps += 1
