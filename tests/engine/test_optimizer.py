from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from engine.optimizer import GuardedAdamW


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(size, generator=generator)) for size in (5, 7)]


def give_gradients(weights: list[nn.Parameter], step: int, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(step)
    for weight in weights:
        weight.grad = scale * torch.randn(weight.shape, generator=generator)


def make(weights: list[nn.Parameter], gradient_clip: float = 0.0) -> GuardedAdamW:
    return GuardedAdamW(
        weights, learning_rate=1e-2, weight_decay=0.1, gradient_clip=gradient_clip, sum_over_shards=None
    )


@pytest.mark.parametrize("gradient_clip", [0.0, 0.5])
def test_it_is_torchs_adamw_with_clipping(gradient_clip: float) -> None:
    ours, theirs = parameters(), parameters()
    optimizer, reference = make(ours, gradient_clip), torch.optim.AdamW(theirs, lr=1e-2, weight_decay=0.1)
    for step in range(4):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        norm = nn.utils.clip_grad_norm_(theirs, gradient_clip or float("inf"))
        optimizer.step()
        reference.step()
        torch.testing.assert_close(optimizer.gradient_norm, norm)
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_gradient_that_is_not_finite_changes_nothing(bad: float) -> None:
    weights, never = parameters(), parameters()
    optimizer, reference = make(weights, 1.0), make(never, 1.0)
    for step in range(3):
        give_gradients(weights, step)
        if step == 1:
            assert weights[1].grad is not None
            weights[1].grad[3] = bad
        optimizer.step()
        assert bool(optimizer.skipped) is (step == 1)
        if step != 1:
            give_gradients(never, step)
            reference.step()
    assert all(torch.equal(one, two) for one, two in zip(weights, never, strict=True))
    assert optimizer.state[weights[0]]["step"] == 2


def test_the_norm_is_that_of_all_shards() -> None:
    def other_shard_too(squares: Tensor) -> None:
        squares += 16.0

    weight = nn.Parameter(torch.zeros(1))
    optimizer = GuardedAdamW(
        [weight], learning_rate=1e-2, weight_decay=0.0, gradient_clip=0.0, sum_over_shards=other_shard_too
    )
    weight.grad = torch.tensor([3.0])
    optimizer.step()
    assert optimizer.gradient_norm == 5.0
