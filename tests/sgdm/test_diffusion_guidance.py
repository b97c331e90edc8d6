"""Guidance: the convention of w, how many passes it takes, where it acts, and clipping after it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sgdm.conditions import Condition
from sgdm.diffusion.guidance import GuidedDenoiser
from sgdm.diffusion.objective import make_objective

NUM_CLUSTERS = 7


class Network:
    """Predicts an eps that depends on everything it is given; remembers the size and clusters of each call."""

    def __init__(self) -> None:
        self.calls: list[list[int] | None] = []

    def __call__(self, x: Tensor, time: Tensor, condition: Condition | None) -> Tensor:
        if condition is None:
            self.calls.append(None)
            return torch.sin(x)
        assert condition.cluster is not None
        self.calls.append(condition.cluster.tolist())
        shift = condition.cluster.to(x.dtype) + time.to(x.dtype) / 1000
        return torch.sin(x + shift.view(-1, 1, 1, 1))


def inputs() -> tuple[Tensor, Condition]:
    x = torch.randn(3, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return x, Condition(cluster=torch.tensor([2, 0, 5]))


def guided(
    network: Network, scale: float, interval: tuple[float, float] | None = None, clip: bool = False
) -> GuidedDenoiser:
    return GuidedDenoiser(make_objective("eps").denoiser(network, clip=clip), scale, interval, NUM_CLUSTERS)


@pytest.mark.parametrize(
    ("scale", "clusters"),
    [(0.0, [7, 7, 7]), (1.0, [2, 0, 5]), (2.0, [7, 7, 7, 2, 0, 5])],
)
def test_passes(scale: float, clusters: list[int]) -> None:
    x, condition = inputs()
    network = Network()
    guided(network, scale)(x, 1.0, condition)
    assert network.calls == [clusters]


@given(scale=st.floats(-3, 8), sigma=st.floats(0.02, 30))
def test_a_doubled_batch_equals_eps_of_two_calls_combined(scale: float, sigma: float) -> None:
    x, condition = inputs()
    plain = make_objective("eps").denoiser(Network(), clip=False)
    eps_conditional = (x - plain(x, sigma, condition)) / sigma
    eps_null = (x - plain(x, sigma, condition.null(NUM_CLUSTERS))) / sigma
    expected = eps_null + scale * (eps_conditional - eps_null)
    eps = (x - guided(Network(), scale)(x, sigma, condition)) / sigma
    torch.testing.assert_close(eps, expected, rtol=1e-9, atol=1e-9)


def test_interval_acts_above_its_low_end_and_up_to_its_high_end() -> None:
    x, condition = inputs()
    network = Network()
    denoiser = guided(network, 2.0, interval=(0.5, 3.0))
    plain = make_objective("eps").denoiser(Network(), clip=False)
    for sigma in (0.1, 0.5, 3.01, 20.0):
        torch.testing.assert_close(denoiser(x, sigma, condition), plain(x, sigma, condition))
    assert network.calls == [[2, 0, 5]] * 4
    for sigma in (0.51, 1.0, 3.0):
        torch.testing.assert_close(denoiser(x, sigma, condition), guided(Network(), 2.0)(x, sigma, condition))
    assert [len(call or []) for call in network.calls[4:]] == [6, 6, 6]


def test_clipping_comes_after_guidance() -> None:
    """3 without and 1.5 with the condition: w = 4 gives 3 - 4 * 1.5 = -3, clipped -1. Clipped first, all were 1."""
    x, condition = inputs()

    def network(x: Tensor, time: Tensor, condition: Condition | None) -> Tensor:
        assert condition is not None
        assert condition.cluster is not None
        value = torch.where(condition.cluster == NUM_CLUSTERS, 3.0, 1.5)
        return value.view(-1, 1, 1, 1).expand(x.shape).to(x.dtype)

    denoiser = make_objective("x0").denoiser(network, clip=True)
    assert GuidedDenoiser(denoiser, 4.0, None, NUM_CLUSTERS).estimate(x, 1.0, condition).unique().tolist() == [-3]
    assert GuidedDenoiser(denoiser, 4.0, None, NUM_CLUSTERS)(x, 1.0, condition).unique().tolist() == [-1]
    unclipped = make_objective("x0").denoiser(network, clip=False)
    assert GuidedDenoiser(unclipped, 4.0, None, NUM_CLUSTERS)(x, 1.0, condition).unique().tolist() == [-3]


def test_all_parts_of_a_condition_are_doubled_and_dropped() -> None:
    seen: list[Condition] = []

    def network(x: Tensor, time: Tensor, condition: Condition | None) -> Tensor:
        assert condition is not None
        seen.append(condition)
        return x

    condition = Condition(torch.tensor([1, 2]), torch.ones(2, 4), torch.ones(2, 1, 4, 4))
    denoiser = make_objective("eps").denoiser(network)
    GuidedDenoiser(denoiser, 3.0, None, NUM_CLUSTERS)(torch.zeros(2, 3, 4, 4), 1.0, condition)
    cluster, attributes, mask = seen[0]
    assert cluster is not None
    assert attributes is not None
    assert mask is not None
    assert cluster.tolist() == [7, 7, 1, 2]
    assert attributes.mean(dim=1).tolist() == [0, 0, 1, 1]
    assert mask.mean(dim=(1, 2, 3)).tolist() == [0, 0, 1, 1]


def test_an_unconditional_network_is_not_guided() -> None:
    x, _ = inputs()
    network = Network()
    guided(network, 1.0)(x, 1.0, None)
    assert network.calls == [None]
    with pytest.raises(ValueError, match=r"guidance_scale=2\.0 needs a condition"):
        guided(network, 2.0)(x, 1.0, None)


def test_an_empty_interval_is_refused() -> None:
    with pytest.raises(ValueError, match="is empty"):
        guided(Network(), 2.0, interval=(3.0, 0.5))


def test_grid_and_range_are_those_of_the_guided_denoiser() -> None:
    plain = make_objective("eps").denoiser(Network())
    denoiser = guided(Network(), 2.0)
    assert denoiser.sigma_grid(10) == plain.sigma_grid(10)
    assert (denoiser.sigma_min, denoiser.sigma_max) == (plain.sigma_min, plain.sigma_max)
