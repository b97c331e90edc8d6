from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sgdm.annotate.stego_loss import (
    OfPairs,
    centre,
    correlation_loss,
    correspondence,
    distillation_loss,
    measured_shifts,
    sample_pairs,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def places(*shape: int, seed: int = 0) -> Tensor:
    return 2 * torch.rand(*shape, 2, generator=torch.Generator().manual_seed(seed)) - 1


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.sqrt(a @ a) / np.sqrt(b @ b))


def loss_by_the_equations(features: tuple[Tensor, Tensor], codes: tuple[Tensor, Tensor], shift: float) -> float:
    """Equations 1, 3 and 4 place by place, in float64."""
    f, g, s, t = (tensor.double().numpy() for tensor in (*features, *codes))
    B, P, Q = len(f), f.shape[2], g.shape[2]
    alike = np.array([[[cosine(f[n, :, p], g[n, :, q]) for q in range(Q)] for p in range(P)] for n in range(B)])
    total = 0.0
    for n in range(B):
        for p in range(P):
            for q in range(Q):
                centred = alike[n, p, q] - alike[n, p].mean() + alike.mean()
                total -= (centred - shift) * max(cosine(s[n, :, p], t[n, :, q]), 0.0)
    return total / (B * P * Q)


@settings(max_examples=20, deadline=None)
@given(
    sizes=st.tuples(*(st.integers(1, 5) for _ in range(5))),
    shift=st.floats(-1, 1),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
    seed=st.integers(0, 99),
)
def test_the_loss_is_that_of_the_equations(
    sizes: tuple[int, int, int, int, int], shift: float, scale: float, seed: int
) -> None:
    B, D, C, P, Q = sizes
    features = scale * normal(B, D, P, seed=seed), normal(B, D, Q, seed=seed + 100)
    codes = normal(B, C, P, seed=seed + 200), scale * normal(B, C, Q, seed=seed + 300)
    expected = loss_by_the_equations(features, codes, shift)
    assert float(correlation_loss(features, codes, shift)) == pytest.approx(expected, abs=1e-5)


def test_only_codes_learn_and_those_that_point_apart_are_left_alone() -> None:
    features = torch.eye(2)[None].requires_grad_()  # two places, unlike
    codes = torch.tensor([[[1.0, 1.0], [0.5, -0.5]], [[1.0, -1.0], [0.5, 0.5]]])
    for pair, moved in zip(codes, (True, False), strict=True):  # less than, and more than, a right angle apart
        code = pair[None].clone().requires_grad_()
        correlation_loss((features, features), (code, code), 0.4).backward()
        assert features.grad is None and code.grad is not None
        assert bool(code.grad.abs().max() > 1e-3) == moved
        if moved:
            after = code.detach() - 0.1 * code.grad
            assert correspondence(after, after)[0, 0, 1] < correspondence(code, code)[0, 0, 1]


def test_centring_leaves_each_place_the_mean_of_all_pairs() -> None:
    correspondences = normal(3, 4, 5)
    centred = centre(correspondences)
    torch.testing.assert_close(centred.mean(dim=2), correspondences.mean().expand(3, 4))
    torch.testing.assert_close(centred.diff(dim=2), correspondences.diff(dim=2))


def test_pairs_are_of_an_image_its_neighbour_and_another() -> None:
    images, neighbours = normal(3, 2, 4, 5), normal(3, 2, 4, 5, seed=1)
    # The centres of corner patches: first the upper left, then the lower right.
    corners = torch.tensor([[-1.0, -1.0], [1.0, 1.0]]).expand(3, 2, 2)
    upper_right = torch.tensor([[1.0, -1.0]]).expand(3, 1, 2)
    pairs = sample_pairs(torch.cat([images, neighbours]), (corners, upper_right))
    for first, _ in pairs:
        torch.testing.assert_close(first, torch.stack([images[:, :, 0, 0], images[:, :, 3, 4]], dim=2))
    torch.testing.assert_close(pairs.same[1], pairs.same[0])
    torch.testing.assert_close(pairs.neighbour[1][:, :, 0], neighbours[:, :, 0, 4])
    torch.testing.assert_close(pairs.random[1][:, :, 0], images[[2, 0, 1], :, 0, 4])


def test_the_whole_loss_weighs_the_three_kinds_of_pairs() -> None:
    where = places(3, 6), places(3, 6, seed=1)
    features, codes = (sample_pairs(normal(6, D, 4, 4, seed=D), where) for D in (5, 3))
    shifts, weights = OfPairs(0.1, 0.2, 0.3), OfPairs(0.5, 2.0, 3.0)
    expected = sum(
        weight * loss_by_the_equations(*parts) for weight, *parts in zip(weights, features, codes, shifts, strict=True)
    )
    assert float(distillation_loss(features, codes, shifts, weights)) == pytest.approx(expected, abs=1e-5)


def test_half_precision_features_are_compared_in_single() -> None:
    features = normal(2, 300, 5)
    exact = correspondence(features.half().float(), features.half().float())
    assert torch.equal(correspondence(features.half(), features.half()), exact)


@pytest.mark.parametrize("offset", [0.0, 3.0])  # features that point anywhere, or much the same way
def test_measured_shifts_let_the_wanted_share_attract(offset: float) -> None:
    where = places(20, 50), places(20, 50, seed=1)
    pairs = sample_pairs(normal(40, 8, 6, 6) + offset, where)
    shares = OfPairs(0.3, 0.2, 0.05)
    shifts = measured_shifts(pairs, shares)
    for pair, shift, share in zip(pairs, shifts, shares, strict=True):
        attracted = (centre(correspondence(*pair)) > shift).float().mean()
        assert float(attracted) == pytest.approx(share, abs=1e-3)
