"""Noise schedules: how much of the image is left at each of the T training steps.

Two coordinate systems are in use. Variance preserving (VP), in which networks are trained:
x_t = sqrt(alpha_bar) image + sqrt(1 - alpha_bar) noise. Variance exploding (VE), in which we sample:
x = image + sigma noise = x_t / sqrt(alpha_bar). They meet in sigma^2 = (1 - alpha_bar) / alpha_bar.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable

import torch
from torch import Tensor

from sgdm.diffusion.names import choose

BETA_START, BETA_END = 1e-4, 0.02  # Ho et al. 2020 (2006.11239), section 4
COSINE_OFFSET = 0.008  # s of Nichol & Dhariwal 2021 (2102.09672), equation 17
MAX_BETA = 0.999  # their guard against a singular last step
KARRAS_RHO = 7  # larger packs more of the steps into low noise


def _sqrt_linear_betas(num_steps: int) -> Tensor:
    return torch.linspace(BETA_START**0.5, BETA_END**0.5, num_steps, dtype=torch.float64).square()


def _linear_betas(num_steps: int) -> Tensor:
    return torch.linspace(BETA_START, BETA_END, num_steps, dtype=torch.float64)


def _cosine_betas(num_steps: int) -> Tensor:
    time = torch.arange(num_steps + 1, dtype=torch.float64) / num_steps
    signal = torch.cos((time + COSINE_OFFSET) / (1 + COSINE_OFFSET) * math.pi / 2).square()
    return (1 - signal[1:] / signal[:-1]).clamp(max=MAX_BETA)


SCHEDULES: dict[str, Callable[[int], Tensor]] = {
    # Linear in sqrt(beta), as in latent diffusion. Self-Guided Diffusion Models were trained with it, under the name
    # "linear" in their released code; it leaves 18 times the signal power of a linear schedule at the last step.
    "sqrt_linear": _sqrt_linear_betas,
    "linear": _linear_betas,
    "cosine": _cosine_betas,
}


def make_alpha_bar(name: str, num_steps: int = 1000) -> Tensor:
    """Cumulative product of (1 - beta), float64 [T]. UnknownNameError for a name that SCHEDULES has not got."""
    return torch.cumprod(1 - choose("noise schedule", name, SCHEDULES)(num_steps), dim=0)


def sigma_from_alpha_bar(alpha_bar: Tensor) -> Tensor:
    """Noise level in VE coordinates of a VP signal power in (0, 1), same shape and type."""
    return ((1 - alpha_bar) / alpha_bar).sqrt()


def alpha_bar_from_sigma(sigma: Tensor) -> Tensor:
    """Inverse of `sigma_from_alpha_bar`."""
    return 1 / (1 + sigma.square())


class StepTable:
    """The noise levels of steps 0 .. T-1, and of the fractional steps between them.

    Host numbers in double precision: a sampler asks once a step, and must not wait for the device.
    Between two steps log(sigma) is linear in the step, so `sigma` and `step` are inverse to each other.
    """

    def __init__(self, alpha_bar: Tensor) -> None:
        """`alpha_bar`: float64 [T], strictly falling inside (0, 1); ValueError otherwise."""
        log_sigma: list[float] = sigma_from_alpha_bar(alpha_bar.double()).log().tolist()
        if not all(map(math.isfinite, log_sigma)) or log_sigma != sorted(set(log_sigma)):
            raise ValueError("alpha_bar must fall strictly from step to step and stay inside (0, 1)")
        self._log_sigma = log_sigma

    def __len__(self) -> int:
        return len(self._log_sigma)

    def sigma(self, step: float) -> float:
        """Noise level of a step in [0, T-1]; ValueError outside."""
        last = len(self) - 1
        if not 0 <= step <= last:
            raise ValueError(f"step {step} is outside 0 .. {last}, the steps of this schedule")
        below = min(int(step), max(last - 1, 0))
        low, high = self._log_sigma[below], self._log_sigma[min(below + 1, last)]
        return math.exp(low + (step - below) * (high - low))

    def step(self, sigma: float) -> float:
        """The step, in general fractional, of a noise level; the nearest end for levels beyond the table."""
        table, value = self._log_sigma, math.log(sigma)
        if value <= table[0]:
            return 0.0
        if value >= table[-1]:
            return float(len(table) - 1)
        above = bisect.bisect_right(table, value)
        low, high = table[above - 1], table[above]
        return above - 1 + (value - low) / (high - low)

    def evenly_spaced_steps(self, count: int) -> list[int]:
        """`count` steps in falling order: round(T - i T / count) - 1 for i = 0 .. count-1.

        Known as "trailing": it begins at T-1, the noisiest step seen in training, where the prior fits best (Lin
        et al. 2305.08891, section 3.3). The released code begins at T - T / count + 1, and ends at 1.
        """
        total = len(self)
        if not 1 <= count <= total:
            raise ValueError(f"steps={count} is outside 1 .. {total}, the steps of this schedule")
        return [round(total - i * total / count) - 1 for i in range(count)]


def karras_grid(sigma_min: float, sigma_max: float, steps: int) -> list[float]:
    """Noise levels [steps + 1], from sigma_max to sigma_min and 0 (Karras et al. 2206.00364, equation 5)."""
    if steps < 1:
        raise ValueError(f"steps={steps}: a sampler takes at least one step")
    if steps == 1:
        return [sigma_max, 0.0]
    high, low = sigma_max ** (1 / KARRAS_RHO), sigma_min ** (1 / KARRAS_RHO)
    return [(high + i / (steps - 1) * (low - high)) ** KARRAS_RHO for i in range(steps)] + [0.0]
