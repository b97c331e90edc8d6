"""Classifier-free guidance (Ho & Salimans 2207.12598), optionally at some noise levels only (2404.07724)."""

from __future__ import annotations

import torch
from torch import Tensor

from sgdm.conditions import Condition, concatenate
from sgdm.diffusion.denoiser import Denoiser


class GuidedDenoiser(Denoiser):
    """Guides with scale w: eps = eps_null + w (eps_conditional - eps_null).

    w = 0 is unconditional and w = 1 plainly conditional, one pass each; any other w takes one pass over a doubled
    batch. The w' of Ho & Salimans is w - 1; the w of the released code is this w.

    At one x and sigma the image estimate x - sigma eps is linear in eps, so combining estimates combines eps, as
    long as they are not clipped yet. Clipping comes last, on the guided estimate, where `denoiser` clips.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        guidance_scale: float,
        interval: tuple[float, float] | None = None,
        num_clusters: int | None = None,
    ) -> None:
        """`interval` (sigma_low, sigma_high): guide where sigma_low < sigma <= sigma_high, else w is 1.

        `num_clusters` is the id of the null cluster, needed where conditions have clusters. ValueError for an
        empty interval.
        """
        if interval is not None and not interval[0] < interval[1]:
            raise ValueError(f"guidance interval {interval} is empty; give (sigma_low, sigma_high), low < high")
        self.sigma_min, self.sigma_max, self.clip = denoiser.sigma_min, denoiser.sigma_max, denoiser.clip
        self._denoiser = denoiser
        self._guidance_scale = guidance_scale
        self._interval = interval
        self._num_clusters = num_clusters

    def estimate(self, x: Tensor, sigma: float, condition: Condition | None) -> Tensor:
        scale = self._scale_at(sigma)
        if scale == 1:
            return self._denoiser.estimate(x, sigma, condition)
        if condition is None:
            raise ValueError(f"guidance_scale={self._guidance_scale} needs a condition; without one it must be 1")
        null = condition.null(self._num_clusters)
        if scale == 0:
            return self._denoiser.estimate(x, sigma, null)
        both = self._denoiser.estimate(torch.cat((x, x)), sigma, concatenate(null, condition))
        unguided, conditional = both.chunk(2)
        return torch.lerp(unguided, conditional, scale)

    def sigma_grid(self, steps: int) -> list[float]:
        return self._denoiser.sigma_grid(steps)

    def _scale_at(self, sigma: float) -> float:
        if self._interval is None or self._interval[0] < sigma <= self._interval[1]:
            return self._guidance_scale
        return 1.0
