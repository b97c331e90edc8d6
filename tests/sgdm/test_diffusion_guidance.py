"""Guidance: the convention of w, where it acts, and what the two estimates are."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sgdm.conditions import Condition, concatenate
from sgdm.diffusion.denoiser import estimate
from sgdm.diffusion.guidance import Guidance, autoguidance, classifier_free, unguided
from sgdm.diffusion.objective import make_objective

NUM_CLUSTERS = 7
OBJECTIVE = make_objective("eps")


def network(x: Tensor, time: Tensor, condition: Condition) -> Tensor:
    """Predicts an eps that depends on everything it is given."""
    assert condition.cluster is not None
    shift = condition.cluster.to(x.dtype) + time.to(x.dtype) / 1000
    return torch.sin(x + shift.view(-1, 1, 1, 1))


def weak(x: Tensor, time: Tensor, condition: Condition) -> Tensor:
    return network(0.9 * x, time, condition)


def inputs() -> tuple[Tensor, Condition]:
    x = torch.randn(3, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return x, Condition(cluster=torch.tensor([2, 0, 5]))


def number(scale: float) -> Tensor:
    return torch.tensor(scale, dtype=torch.float64)


@given(scale=st.floats(-3, 8), sigma=st.floats(0.02, 30))
def test_a_doubled_batch_equals_eps_of_two_calls_combined(scale: float, sigma: float) -> None:
    x, condition = inputs()
    level, null = OBJECTIVE.level(sigma), condition.null(NUM_CLUSTERS)
    eps_conditional = (x - estimate(network, x, level, condition)) / sigma
    eps_null = (x - estimate(network, x, level, null)) / sigma
    expected = eps_null + scale * (eps_conditional - eps_null)
    guided = classifier_free(network)(x, level, number(scale), concatenate(null, condition))
    torch.testing.assert_close((x - guided) / sigma, expected, rtol=1e-9, atol=1e-9)


@given(scale=st.floats(-3, 8), sigma=st.floats(0.02, 30))
def test_autoguidance_leads_away_from_the_weak_network(scale: float, sigma: float) -> None:
    x, condition = inputs()
    level = OBJECTIVE.level(sigma)
    strong, faint = (estimate(made, x, level, condition) for made in (network, weak))
    guided = autoguidance(network, weak)(x, level, number(scale), (condition, condition))
    torch.testing.assert_close(guided, faint + scale * (strong - faint), rtol=1e-9, atol=1e-9)


def test_unguided_is_the_network_alone() -> None:
    x, condition = inputs()
    level = OBJECTIVE.level(1.0)
    assert torch.equal(unguided(network)(x, level, number(3.0), condition), estimate(network, x, level, condition))


def test_an_interval_acts_above_its_low_end_and_up_to_its_high_end() -> None:
    guidance = Guidance(2.0, interval=(0.5, 3.0))
    assert [guidance.at(sigma) for sigma in (0.1, 0.5, 3.01, 20.0)] == [1.0] * 4
    assert [guidance.at(sigma) for sigma in (0.51, 1.0, 3.0)] == [2.0] * 3
    assert Guidance(2.0).at(1e4) == 2.0 and Guidance().at(1.0) == 1.0


@pytest.mark.parametrize("interval", [(3.0, 0.5), (1.0, 1.0), (float("nan"), 1.0)])
def test_an_empty_interval_is_refused(interval: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="is empty"):
        Guidance(2.0, interval)
