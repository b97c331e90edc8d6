"""Averages of weights whose length is chosen after training (Karras et al. 2023, "EDM2", arXiv 2312.02696, section 3
and appendix C).

An average that ends at time t, in images seen, weighs the weights of time s by a power function, its profile

    p(s) = (gamma + 1) / t * (s / t)^gamma    for 0 <= s <= t, and 0 after t.

Its length sigma_rel is the standard deviation of that density divided by t: 0.1 looks back on about a tenth of the
training, however long it is. `power_decay` follows an average during training. Averages of two lengths, stored a few
dozen times, then give one of any length: the combination of them whose profile is nearest to the wanted one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

LONGEST = 12**-0.5
"""Length of the plain mean over all of the training (gamma = 0); lengths lie below it."""

FINEST_STEP = 2.0**-15
"""Growth of the images seen that is worth a step of an average."""


class Profile(NamedTuple):
    length: float
    """sigma_rel, between 0 and LONGEST."""
    images: int
    """End, in images seen."""


class Combination(NamedTuple):
    weights: NDArray[np.float64]
    """Of every given average [N]; they sum to 1."""
    error: float
    """|p - sum of weights * profiles| / |p| in the L2 norm over time, p the wanted profile. Values below 1e-7 are
    rounding."""


def gamma_of_length(length: float) -> float:
    """The exponent gamma > 0 of a length sigma_rel. ValueError for a length outside (0, LONGEST).

    The one root of the cubic sigma_rel^2 (gamma + 2)^2 (gamma + 3) = gamma + 1, between 0 and 1 / sigma_rel: the
    length of a profile falls with gamma."""
    if not 0 < length < LONGEST:
        raise ValueError(
            f"there is no average of length {length}: lengths are parts of the training between 0 and "
            f"{LONGEST:.4f} (1 / sqrt(12), the plain mean), such as 0.05"
        )

    def excess(gamma: float) -> float:
        return math.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2) / length - 1

    return float(brentq(excess, 0.0, 1 / length, xtol=1e-14, rtol=1e-14))


def power_decay(gamma: float, images_before: int, images_after: int) -> float:
    """The decay beta of average <- beta * average + (1 - beta) * weights, for a step between two numbers of images.

    (images_before / images_after)^(gamma + 1) is what the step leaves of the profile's mass, so that the average is
    exactly that of weights that stay the same within each step, of whatever size the steps are. The first step, from
    0, has decay 0: what the average held before is forgotten. ValueError where images do not grow."""
    if not 0 <= images_before < images_after:
        raise ValueError(f"a step of an average goes from {images_before} to {images_after} images: give more images")
    return float((images_before / images_after) ** (gamma + 1))


def step_is_due(images_before: int, images_after: int) -> bool:
    """Whether an average that took its last step at images_before should take one at images_after.

    Late in a long training an optimizer step moves an average by less than float32 can add to it. Simulated: of
    weights that move by 1 % of their size, the average of length 0.05 is off by 2 % of its own move after a million
    optimizer steps and by 80 % after 8 million; by 1 % after both where it takes only the steps that are due."""
    return images_after >= images_before * (1 + FINEST_STEP)


def inner_products(first: Sequence[Profile], second: Sequence[Profile]) -> NDArray[np.float64]:
    """Integrals over time of every product of two profiles, float64 [len(first), len(second)], in 1 / images.

    Of profiles that end at t <= T, the integral of s^(gamma_t + gamma_T) from 0 to t in closed form. Only the ratio
    t / T <= 1 is raised to a power, that of the later one, so that nothing overflows."""
    gammas, ends = _columns(first)
    other_gammas, other_ends = _columns(second)
    gamma, end = gammas[:, None], ends[:, None]
    later = np.maximum(end, other_ends)
    gamma_of_later = np.where(end > other_ends, gamma, other_gammas)
    scale = (gamma + 1) * (other_gammas + 1) / (gamma + other_gammas + 1) / later
    return scale * (np.minimum(end, other_ends) / later) ** gamma_of_later


def nearest_combination(wanted: Profile, stored: Sequence[Profile]) -> Combination:
    """The combination of stored averages whose profile is nearest to the wanted one, in the least-squares sense.

    Among those whose weights sum to 1, which the paper does not ask for: a weight that the training has left alone
    comes back as it is. ValueError where nothing is stored, for a length that no average has, and for an end that is
    not positive or comes after the last of the stored."""
    if not stored:
        raise ValueError(f"there is nothing to combine to an average of length {wanted.length}: store averages first")
    last = max(profile.images for profile in stored)
    if not 0 < wanted.images <= last:
        raise ValueError(f"an average cannot end at {wanted.images:,} images: give 1 to {last:,}, the last stored end")
    gram, cross = inner_products(stored, stored), inner_products(stored, [wanted])[:, 0]
    # In units of every profile's own norm the system is well scaled.
    norms, norm = np.sqrt(np.diag(gram)), np.sqrt(inner_products([wanted], [wanted])[0, 0])
    gram, cross, unit = gram / np.outer(norms, norms), cross / (norms * norm), norm / norms
    # Least squares with a Lagrange multiplier for the sum. Averages that are nearly alike make the matrix singular:
    # lstsq then takes the smallest weights.
    matrix = np.block([[gram, unit[:, None]], [unit, np.zeros(1)]])
    scaled = np.linalg.lstsq(matrix, np.append(cross, 1.0), rcond=None)[0][:-1]
    squared_error = 1 - 2 * scaled @ cross + scaled @ gram @ scaled
    return Combination(scaled * unit, float(np.sqrt(max(squared_error, 0.0))))


def _columns(profiles: Sequence[Profile]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """gamma and end [N] of profiles."""
    gammas = {length: gamma_of_length(length) for length in {profile.length for profile in profiles}}
    return (
        np.array([gammas[profile.length] for profile in profiles], np.float64),
        np.array([profile.images for profile in profiles], np.float64),
    )
