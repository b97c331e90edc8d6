"""Guidance: an estimate of the image is moved away from a worse one, optionally at some noise levels only (2404.07724).

With scale w the guided estimate is D_worse + w (D - D_worse). At one x and sigma an estimate x - sigma eps is linear in
eps, so combining estimates combines eps, as long as they are not clipped yet: clipping comes last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sgdm.diffusion.denoiser import Level, Network, estimate


@dataclass(frozen=True)
class Guidance:
    """How much to guide, and where. ValueError for an empty interval.

    w = 1 is the estimate itself and w = 0 the worse one, one pass of a network each; any other w takes both. The w' of
    Ho & Salimans is w - 1; the w of the released code is this w.
    """

    scale: float = 1.0
    """w."""

    interval: tuple[float, float] | None = None
    """(sigma_low, sigma_high): guide where sigma_low < sigma <= sigma_high, else w is 1. None guides everywhere."""

    def __post_init__(self) -> None:
        if self.interval is not None and not self.interval[0] < self.interval[1]:
            raise ValueError(f"guidance interval {self.interval} is empty; give (sigma_low, sigma_high), low < high")

    def at(self, sigma: float) -> float:
        """w at a noise level."""
        if self.interval is None or self.interval[0] < sigma <= self.interval[1]:
            return self.scale
        return 1.0


UNGUIDED = Guidance()

Estimate = Callable[[Tensor, Level, Tensor, Any], Tensor]
"""estimate(x [B, C, H, W], level, w without dimensions, condition) -> the image, not clipped yet."""


def unguided(network: Network) -> Estimate:
    """One pass of the network; w says nothing to it."""
    return lambda x, level, scale, condition: estimate(network, x, level, condition)


def classifier_free(network: Network) -> Estimate:
    """Ho & Salimans (2207.12598): the worse estimate is that of the null condition. One pass over a doubled batch; its
    condition is the null one and then that of the images, for 2 B images."""

    def guided(x: Tensor, level: Level, scale: Tensor, condition: Any) -> Tensor:
        null, conditional = estimate(network, torch.cat((x, x)), level, condition).chunk(2)
        return torch.lerp(null, conditional, scale)

    return guided


def autoguidance(network: Network, weak: Network) -> Estimate:
    """Karras et al. (2406.02507): the worse estimate is that of a weaker network of the same objective, a smaller or
    earlier one. Takes the condition of either network, (the network's, the weak one's)."""

    def guided(x: Tensor, level: Level, scale: Tensor, condition: Any) -> Tensor:
        own, weaks = condition
        return torch.lerp(estimate(weak, x, level, weaks), estimate(network, x, level, own), scale)

    return guided
