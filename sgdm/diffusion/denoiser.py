"""What a sampler sees of a trained network: an estimate of the clean image at any noise level."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor

from sgdm.conditions import Condition

Network = Callable[[Tensor, Tensor, Condition | None], Tensor]
"""network(x [B, C, H, W], time float32 [B], condition) -> [B, C, H, W]; its objective says what time is."""


class Denoiser(ABC):
    """Estimates the clean image from x = image + sigma * noise (variance exploding coordinates).

    `sigma` is a Python float, the same for the whole batch: guidance decides by it which passes to run, and a
    number that lives on the host never makes the host wait for the device.
    """

    sigma_min: float
    """The least noise level of a sampler, above 0."""

    sigma_max: float
    """The noise level at which sampling begins."""

    clip: bool
    """Whether estimates are clipped to [-1, 1], the range of images."""

    def __call__(self, x: Tensor, sigma: float, condition: Condition | None) -> Tensor:
        """Estimate of the clean image, shape and type of `x` [B, C, H, W], clipped where `clip` is set."""
        image = self.estimate(x, sigma, condition)
        return image.clamp(-1, 1) if self.clip else image

    @abstractmethod
    def estimate(self, x: Tensor, sigma: float, condition: Condition | None) -> Tensor:
        """The estimate before clipping, which is linear in the predicted noise: what guidance combines."""

    @abstractmethod
    def sigma_grid(self, steps: int) -> list[float]:
        """The objective's own noise levels for sampling in `steps` steps: falling, [steps + 1], ending in 0."""
