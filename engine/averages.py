"""Averages of the weights: the ones that draw samples. They follow this process's part of the fp32 weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.ema import ema_update
from sgdm.averaging import gamma_of_length, power_decay, step_is_due


def decay_name(decay: float) -> str:
    return f"ema-{decay:g}"


def length_name(length: float) -> str:
    return f"length-{length:g}"


class Averages:
    """Moving averages in fp32, by name, laid out as the masters that they follow (engine/shards.py).

    Exponential ones: the decay of step n is min(decay, (1 + n) / (10 + n)), so that early averages forget the initial
    weights (the released SGDM code's ramp). Power-function ones of a relative length (sgdm/averaging.py), of which
    averages of other lengths are made after training."""

    def __init__(self, masters: Sequence[Tensor], decays: tuple[float, ...], lengths: tuple[float, ...] = ()) -> None:
        self.steps = 0
        self.stretched_at = 0
        """Images seen at the last step of the power-function averages."""
        self.lengths = lengths
        names = [*map(decay_name, decays), *map(length_name, lengths)]
        self.shards = {name: [master.detach().clone() for master in masters] for name in names}
        self._masters, self._decays = masters, decays
        self._gammas = [gamma_of_length(length) for length in lengths]

    @torch.no_grad()
    def update(self, images: int) -> None:
        """Once after each optimizer step, at `images` seen. Nothing is gathered, and no process waits for another."""
        ramp = (1 + self.steps) / (10 + self.steps)
        decays = [min(decay, ramp) for decay in self._decays]
        self.steps += 1
        if self._gammas and step_is_due(self.stretched_at, images):
            decays += [power_decay(gamma, self.stretched_at, images) for gamma in self._gammas]
            self.stretched_at = images
        ema_update(list(self.shards.values())[: len(decays)], self._masters, decays)
