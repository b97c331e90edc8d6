"""Power-function averages: against numerical integration, and against averages that were followed directly."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.integrate import quad

from sgdm.averaging import (
    LONGEST,
    Profile,
    gamma_of_length,
    inner_products,
    nearest_combination,
    power_decay,
    step_is_due,
)

lengths = st.floats(0.01, 0.28)
ends = st.integers(1, 10**10)


def density(profile: Profile, time: NDArray[np.float64]) -> NDArray[np.float64]:
    gamma = gamma_of_length(profile.length)
    return np.where(time <= profile.images, (gamma + 1) / profile.images * (time / profile.images) ** gamma, 0.0)


def stored_at(times: NDArray[np.int64], *lengths: float) -> list[Profile]:
    return [Profile(length, int(time)) for time in times for length in lengths]


@settings(deadline=None)
@given(lengths)
def test_the_length_is_the_relative_standard_deviation(length: float) -> None:
    profile = Profile(length, 1)
    # The mass lies within a few lengths of the end: quad is told where to look.
    mass, mean, square = (
        sum(
            quad(lambda time, n=n: float(density(profile, np.array(time))) * time**n, *part, epsabs=1e-12)[0]
            for part in ((0.0, 0.5), (0.5, 1.0))
        )
        for n in (0, 1, 2)
    )
    assert mass == pytest.approx(1)
    assert math.sqrt(square - mean**2) == pytest.approx(length, rel=1e-6)


def test_the_exponents_of_the_paper() -> None:
    assert gamma_of_length(0.05) == pytest.approx(16.97, abs=5e-3)
    assert gamma_of_length(0.10) == pytest.approx(6.94, abs=5e-3)
    assert gamma_of_length(math.nextafter(LONGEST, 0)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("length", [0.0, -0.1, LONGEST, 0.3, math.nan])
def test_a_length_that_no_average_has(length: float) -> None:
    with pytest.raises(ValueError, match=rf"length {length}: .* between 0 and 0\.2887"):
        gamma_of_length(length)


@settings(max_examples=50, deadline=None)
@given(lengths, st.lists(st.integers(1, 10**8), min_size=1, max_size=30))
def test_steps_of_any_size_leave_every_step_its_share_of_the_profile(length: float, steps: list[int]) -> None:
    gamma, times = gamma_of_length(length), [0, *np.cumsum(steps).tolist()]
    shares = np.zeros(len(steps))
    for step in range(len(steps)):
        decay = power_decay(gamma, times[step], times[step + 1])
        shares *= decay
        shares[step] = 1 - decay
    np.testing.assert_allclose(shares, np.diff((np.array(times) / times[-1]) ** (gamma + 1)), rtol=1e-6, atol=1e-12)


def test_the_first_step_forgets_what_was_there() -> None:
    assert power_decay(gamma_of_length(0.05), 0, 128) == 0


def test_steps_that_are_due_are_large_enough_for_float32() -> None:
    """Weights that are 0.1 % of their size ahead, late in 10^10 images: an average that steps every 1,000 images stays
    where it is, one that steps when it is due follows."""
    gamma, start, weights = gamma_of_length(0.05), 9 * 10**9, np.float32(1.001)
    still = average = np.float32(1)
    last = start
    for now in range(start + 1_000, start + 30_000_000, 1_000):
        still += np.float32(1 - power_decay(gamma, now - 1_000, now)) * (weights - still)
        if step_is_due(last, now):
            average += np.float32(1 - power_decay(gamma, last, now)) * (weights - average)
            last = now
    assert still == 1
    assert float(average - 1) == pytest.approx(0.001 * (1 - (start / last) ** (gamma + 1)), rel=0.05)
    assert average > 1.00005


def test_early_every_step_is_due() -> None:
    assert step_is_due(0, 128) and step_is_due(128, 256) and step_is_due(10**6, 10**6 + 128)
    assert not step_is_due(10**9, 10**9 + 128)


def test_a_step_goes_forward() -> None:
    with pytest.raises(ValueError, match="from 128 to 128 images"):
        power_decay(7.0, 128, 128)


@settings(max_examples=50, deadline=None)
@given(lengths, ends, lengths, ends)
def test_inner_products_are_integrals(length: float, end: int, other_length: float, other_end: int) -> None:
    first, second = Profile(length, end), Profile(other_length, other_end)
    sooner = min(end, other_end)
    expected = sum(
        quad(
            lambda part: (
                sooner * float(density(first, np.array(part * sooner)) * density(second, np.array(part * sooner)))
            ),
            *bounds,
            epsabs=0,
        )[0]
        for bounds in ((0.0, 0.5), (0.5, 1.0))
    )
    found = inner_products([first], [second])[0, 0]
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-300)
    assert found == pytest.approx(inner_products([second], [first])[0, 0], rel=1e-12)


def test_inner_products_of_very_short_averages_far_apart() -> None:
    profiles = stored_at(np.array([1, 10**10 - 1, 10**10]), 1e-5, 0.28)
    gram = inner_products(profiles, profiles)
    norms = np.sqrt(np.diag(gram))
    assert np.isfinite(gram).all() and (norms > 0).all()
    assert (gram <= np.outer(norms, norms) * (1 + 1e-12)).all()


@settings(max_examples=30, deadline=None)
@given(lengths, st.sampled_from([0.02, 0.05, 0.1, 0.2]), st.integers(2, 20))
def test_what_is_stored_comes_back_as_it_is(other: float, length: float, count: int) -> None:
    if abs(other - length) < 0.01:
        return
    stored = stored_at(np.arange(1, count + 1) * 1_000, length, other)
    found = nearest_combination(stored[-2], stored)
    np.testing.assert_allclose(found.weights, np.eye(len(stored))[-2], atol=1e-6)
    assert found.error < 1e-6


@settings(max_examples=20, deadline=None)
@given(lengths, st.integers(1, 32), st.data())
def test_the_error_is_that_of_the_profile_and_the_least(length: float, count: int, data: st.DataObject) -> None:
    stored = stored_at(np.linspace(0, 10**6, count + 1, dtype=np.int64)[1:], 0.05, 0.1)
    wanted = Profile(length, data.draw(st.sampled_from([profile.images for profile in stored])))
    found = nearest_combination(wanted, stored)
    assert found.weights.sum() == pytest.approx(1, abs=1e-9)
    time = (np.arange(40_000) + 0.5) * 25
    profiles = np.stack([density(profile, time) for profile in stored])
    target = density(wanted, time)

    def error(weights: NDArray[np.float64]) -> float:
        return float(np.linalg.norm(target - weights @ profiles) / np.linalg.norm(target))

    assert found.error == pytest.approx(error(found.weights), rel=2e-2, abs=1e-3)
    change = np.random.default_rng(0).normal(size=len(stored))
    change -= change.mean()
    assert min(error(found.weights + step * change) for step in (-1e-2, 1e-2)) >= error(found.weights) - 1e-9


def test_more_snapshots_are_nearer() -> None:
    errors = [
        nearest_combination(Profile(0.075, 10**8), stored_at(np.arange(1, count + 1) * 10**8 // count, 0.05, 0.1)).error
        for count in (1, 4, 16, 64)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < 5e-3 and errors[3] < 5e-4  # what the documentation promises of a sixteenth


def test_averages_that_are_nearly_alike_do_not_blow_up() -> None:
    times = 10**10 - np.arange(300)[::-1] * 1_000
    found = nearest_combination(Profile(0.06, 10**10), stored_at(times, 0.05, 0.0501, 0.1))
    assert found.error < 0.01
    assert np.linalg.norm(found.weights) * np.finfo(np.float32).eps < 1e-5  # what rounding of the stored ones costs


@pytest.mark.parametrize("wanted", [Profile(0.04, 400_000), Profile(0.075, 400_000), Profile(0.15, 200_000)])
def test_a_length_that_was_not_followed(wanted: Profile) -> None:
    """64 weights walk at random around 5, in steps of uneven size. Two averages are followed, and a third that the
    combination does not see.

    By Cauchy and Schwarz the two differ by at most |p - combined profile| * |weights - 5| in L2 over time: the 5 does
    not count, since the weights of the combination sum to 1. Within a step the weights are those at its end."""
    random = np.random.default_rng(0)
    steps = random.integers(50, 151, 4_000)
    times = np.concatenate([[0], np.cumsum(steps)])
    wanted = Profile(wanted.length, int(times[4_000 * wanted.images // 400_000]))
    averages = {length: np.zeros(64) for length in (0.05, 0.1, wanted.length)}
    gammas = {length: gamma_of_length(length) for length in averages}
    weights, squares, kept, direct = np.full(64, 5.0), np.zeros(64), {}, np.zeros(64)
    for step, (before, after) in enumerate(zip(times[:-1].tolist(), times[1:].tolist(), strict=True)):
        weights = weights + random.normal(0, 0.01, 64)
        for length, average in averages.items():
            decay = power_decay(gammas[length], before, after)
            averages[length] = decay * average + (1 - decay) * weights
        if after <= wanted.images:
            squares += (weights - 5) ** 2 * (after - before)
        if after == wanted.images:
            direct = averages[wanted.length]
        if step % 250 == 249 and after <= wanted.images:
            kept |= {Profile(length, after): averages[length] for length in (0.05, 0.1)}
    found = nearest_combination(wanted, list(kept))
    combined = found.weights @ np.stack(list(kept.values()))
    norm = math.sqrt(inner_products([wanted], [wanted])[0, 0])
    difference = np.abs(combined - direct)
    assert (difference <= found.error * norm * np.sqrt(squares) + 1e-9).all()
    nearest = min(np.abs(average - direct).mean() for average in kept.values())
    assert difference.mean() < nearest / 10


@pytest.mark.parametrize(
    ("wanted", "stored", "message"),
    [
        (Profile(0.05, 100), [], r"nothing to combine .* length 0\.05: store averages first"),
        (Profile(0.05, 300), [Profile(0.1, 100), Profile(0.1, 200)], "cannot end at 300 images: give 1 to 200"),
        (Profile(0.05, 0), [Profile(0.1, 100)], "cannot end at 0 images"),
        (Profile(0.5, 100), [Profile(0.1, 100)], r"length 0\.5"),
    ],
)
def test_refusals(wanted: Profile, stored: list[Profile], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nearest_combination(wanted, stored)
