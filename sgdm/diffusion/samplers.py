"""Samplers: from noise to images, along a falling grid of noise levels that ends in 0.

Written once, in variance exploding coordinates, they work with any objective. Every one of them is a linear recurrence
of two registers, the image x at some noise level and a memory m: a row of its table says what one estimate D of the
clean image makes of them. So a single function runs them all (sgdm/diffusion/sampling.py), and their coefficients are
computed beforehand, in double precision.

The noise in x is taken to be (x - D) / sigma, so that it fits the estimated image also where that was clipped, as in
Dhariwal & Nichol (2105.05233). The released code of Self-Guided Diffusion Models clips the image but keeps the
network's own noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

from sgdm.diffusion.names import choose
from sgdm.diffusion.objective import Objective
from sgdm.diffusion.schedule import karras_grid


class Row(NamedTuple):
    """x' = image D + noise (x - D) + memory m + fresh n and m' = kept_image D + kept_noise (x - D), where D is the
    estimate at (x, sigma) and n fresh standard normal noise.

    In terms of D and x - D, rather than of D and x, no row takes the difference of two nearly equal products.
    """

    sigma: float
    image: float = 0.0
    noise: float = 0.0
    memory: float = 0.0
    fresh: float = 0.0
    kept_image: float = 0.0
    kept_noise: float = 0.0


def ddim(sigmas: list[float], eta: float) -> list[Row]:
    """Song et al. (2010.02502), equation 12: Euler's method at eta 0, DDPM at eta 1. One pass a step."""
    rows = []
    for sigma, sigma_next in pairwise(sigmas):
        # Their sigma_t (equation 16), divided by sqrt(alpha_bar) of the next step.
        fresh = eta * sigma_next * math.sqrt(1 - (sigma_next / sigma) ** 2)
        kept = math.sqrt(sigma_next**2 - fresh**2)
        rows.append(Row(sigma, image=1, noise=kept / sigma, fresh=fresh))
    return rows


def ddpm(sigmas: list[float], eta: float) -> list[Row]:
    """Ho et al. (2006.11239), ancestral with the variance of the posterior (equation 7). One pass a step."""
    return ddim(sigmas, eta=1.0)


def heun(sigmas: list[float], eta: float) -> list[Row]:
    """Karras et al. (2206.00364), algorithm 1: second order, deterministic. Two passes a step but the last.

    The first is a step of Euler's method; x with half of it is kept, and the second adds the other half, by the slope
    where the first arrived.
    """
    rows = []
    for sigma, sigma_next in pairwise(sigmas):
        half = (sigma_next - sigma) / 2
        if sigma_next > 0:
            rows.append(Row(sigma, image=1, noise=sigma_next / sigma, kept_image=1, kept_noise=1 + half / sigma))
            rows.append(Row(sigma_next, memory=1, noise=half / sigma_next))
        else:
            rows.append(Row(sigma, image=1))
    return rows


def dpm_solver(sigmas: list[float], eta: float) -> list[Row]:
    """DPM-Solver++(2M), Lu et al. (2211.01095), algorithm 2: second order, deterministic. One pass a step.

    Beyond the estimate lies D + beyond (D - m), where m is the estimate before it. The first step has no past and the
    last one an infinite length in log(sigma): both are of first order.
    """
    rows = []
    past_length: float | None = None
    for sigma, sigma_next in pairwise(sigmas):
        kept, beyond = sigma_next / sigma, 0.0
        if sigma_next > 0:
            length = math.log(sigma / sigma_next)
            beyond = 0.0 if past_length is None else (1 - kept) * length / (2 * past_length)
            past_length = length
        rows.append(Row(sigma, image=1 + beyond, noise=kept, memory=-beyond, kept_image=1))
    return rows


class Sampler(NamedTuple):
    rows: Callable[[list[float], float], list[Row]]
    """Of (sigmas, eta). Deterministic samplers leave `eta` alone."""

    karras: bool
    """Whether it takes the grid of Karras et al. for any objective, instead of the objective's own."""


SAMPLERS = {
    "ddpm": Sampler(ddpm, karras=False),
    "ddim": Sampler(ddim, karras=False),
    "heun": Sampler(heun, karras=True),
    "dpmpp": Sampler(dpm_solver, karras=False),
}


def make_rows(objective: Objective, sampler: str, steps: int, eta: float = 0.0) -> list[Row]:
    """The table of one of SAMPLERS: a row for each estimate, in order.

    `eta` in [0, 1] is the randomness of "ddim". ValueError for an unknown sampler, for steps that the objective has not
    got, and for an eta out of place.
    """
    rows, karras = choose("sampler", sampler, SAMPLERS)
    if not 0 <= eta <= 1:
        raise ValueError(f"eta={eta} is outside [0, 1]: 0 adds no noise, 1 as much as DDPM")
    if eta != 0 and sampler != "ddim":
        raise ValueError(f"eta={eta} is for the sampler 'ddim' alone; leave it out for {sampler!r}")
    grid = karras_grid(objective.sigma_min, objective.sigma_max, steps) if karras else objective.sigma_grid(steps)
    return rows(grid, eta)
