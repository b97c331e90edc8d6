"""Samplers: from noise to images, along a falling grid of noise levels that ends in 0.

Written once, in variance exploding coordinates, they work with any objective. Coefficients are Python floats, and
nothing here waits for the device. The noise in x is taken to be (x - image) / sigma, so that it fits the estimated
image also where that was clipped, as in Dhariwal & Nichol (2105.05233). The released code of Self-Guided Diffusion
Models clips the image but keeps the network's own noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from sgdm.conditions import Condition
from sgdm.diffusion.denoiser import Denoiser
from sgdm.diffusion.names import choose
from sgdm.diffusion.schedule import karras_grid
from sgdm.progress import Advance, ignore

Denoise = Callable[[Tensor, float], Tensor]
Draw = Callable[[], Tensor]


class Noise(Protocol):
    """Where the randomness of a batch comes from, see NoiseSource."""

    def draw(self) -> Tensor:
        """Standard normal [B, C, H, W]; another at each call."""


def ddim(denoise: Denoise, x: Tensor, sigmas: list[float], draw: Draw, eta: float) -> Tensor:
    """Song et al. (2010.02502), equation 12: Euler's method at eta 0, DDPM at eta 1. One pass a step."""
    for sigma, sigma_next in pairwise(sigmas):
        # Their sigma_t (equation 16), divided by sqrt(alpha_bar) of the next step.
        fresh = eta * sigma_next * math.sqrt(1 - (sigma_next / sigma) ** 2)
        kept = math.sqrt(sigma_next**2 - fresh**2)
        x = torch.lerp(denoise(x, sigma), x, kept / sigma)
        if fresh > 0:
            x = x + fresh * draw()
    return x


def ddpm(denoise: Denoise, x: Tensor, sigmas: list[float], draw: Draw, eta: float) -> Tensor:
    """Ho et al. (2006.11239), ancestral with the variance of the posterior (equation 7). One pass a step."""
    return ddim(denoise, x, sigmas, draw, eta=1.0)


def heun(denoise: Denoise, x: Tensor, sigmas: list[float], draw: Draw, eta: float) -> Tensor:
    """Karras et al. (2206.00364), algorithm 1: second order, deterministic. Two passes a step but the last."""
    for sigma, sigma_next in pairwise(sigmas):
        slope = (x - denoise(x, sigma)) / sigma
        euler = x + (sigma_next - sigma) * slope
        if sigma_next > 0:
            slope = (slope + (euler - denoise(euler, sigma_next)) / sigma_next) / 2
            x = x + (sigma_next - sigma) * slope
        else:
            x = euler
    return x


def dpm_solver(denoise: Denoise, x: Tensor, sigmas: list[float], draw: Draw, eta: float) -> Tensor:
    """DPM-Solver++(2M), Lu et al. (2211.01095), algorithm 2: second order, deterministic. One pass a step.

    The first step has no past and the last one an infinite length in log(sigma): both are of first order.
    """
    past: tuple[Tensor, float] | None = None
    for sigma, sigma_next in pairwise(sigmas):
        image = estimate = denoise(x, sigma)
        if sigma_next > 0:
            length = math.log(sigma / sigma_next)
            if past is not None:
                past_estimate, past_length = past
                image = torch.lerp(estimate, past_estimate, -length / (2 * past_length))
            past = estimate, length
        x = torch.lerp(image, x, sigma_next / sigma)
    return x


class Sampler(NamedTuple):
    run: Callable[[Denoise, Tensor, list[float], Draw, float], Tensor]
    """Deterministic samplers leave `draw` and `eta` alone."""

    karras: bool
    """Whether it takes the grid of Karras et al. for any objective, instead of the objective's own."""


SAMPLERS = {
    "ddpm": Sampler(ddpm, karras=False),
    "ddim": Sampler(ddim, karras=False),
    "heun": Sampler(heun, karras=True),
    "dpmpp": Sampler(dpm_solver, karras=False),
}


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    condition: Condition | None,
    noise: Noise,
    *,
    sampler: str,
    steps: int,
    eta: float = 0.0,
    advance: Advance = ignore,
) -> Tensor:
    """Draw one batch of images: float [B, C, H, W], about in [-1, 1].

    `sampler` is one of SAMPLERS, `steps` the number of its steps, `eta` in [0, 1] the randomness of "ddim".
    ValueError for an unknown sampler, for steps that the objective has not got, and for an eta out of place.
    """
    run, karras = choose("sampler", sampler, SAMPLERS)
    if not 0 <= eta <= 1:
        raise ValueError(f"eta={eta} is outside [0, 1]: 0 adds no noise, 1 as much as DDPM")
    if eta != 0 and sampler != "ddim":
        raise ValueError(f"eta={eta} is for the sampler 'ddim' alone; leave it out for {sampler!r}")
    sigmas = karras_grid(denoiser.sigma_min, denoiser.sigma_max, steps) if karras else denoiser.sigma_grid(steps)
    # A variance preserving model begins with N(0, 1) in its own coordinates: here that is N(0, 1 + sigma^2). EDM
    # begins with N(0, sigma^2); at its sigma of 80 that is smaller by 8e-5 of the scale.
    start = math.hypot(1, sigmas[0]) * noise.draw()
    image = run(lambda x, sigma: denoiser(x, sigma, condition), start, sigmas, noise.draw, eta)
    advance(len(image))
    return image
