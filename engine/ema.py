"""Averages of the weights: the ones that draw samples."""

from __future__ import annotations

import copy

import torch

from kernels.ema import ema_update
from sgdm.models.unet import UNet


class Averages:
    """Exponential moving averages in fp32, one copy of the network for each decay.

    The decay of step n is min(decay, (1 + n) / (10 + n)), so that early averages forget the initial weights
    (the released SGDM code's ramp)."""

    def __init__(self, network: UNet, decays: tuple[float, ...]) -> None:
        self.steps = 0
        self.networks = {decay: copy.deepcopy(network).eval().requires_grad_(False) for decay in decays}
        self._weights = list(network.parameters())
        self._averages = [list(average.parameters()) for average in self.networks.values()]

    @torch.no_grad()
    def update(self) -> None:
        """Once after each optimizer step."""
        ramp = (1 + self.steps) / (10 + self.steps)
        ema_update(self._averages, self._weights, [min(decay, ramp) for decay in self.networks])
        self.steps += 1
