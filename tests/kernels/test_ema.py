"""Moving averages of weights."""

from __future__ import annotations

import pytest
import torch

from kernels.ema import ema_update


def test_several_averages_follow_the_formula() -> None:
    parameters = [torch.randn(3, 4), torch.randn(5)]
    averages = [[torch.randn(3, 4), torch.randn(5)] for _ in range(2)]
    decays = [0.9, 0.999]
    expected = [
        [decay * mean + (1 - decay) * parameter for mean, parameter in zip(average, parameters, strict=True)]
        for average, decay in zip(averages, decays, strict=True)
    ]
    ema_update(averages, parameters, decays)
    torch.testing.assert_close(averages, expected)


def test_small_steps_are_not_lost_for_bfloat16_weights() -> None:
    average = [torch.ones(4)]
    for _ in range(100):
        ema_update([average], [torch.full((4,), 2.0, dtype=torch.bfloat16)], [0.9999])
    torch.testing.assert_close(average[0], torch.full((4,), 2 - 0.9999**100))


def test_weights_stay_as_they_are_and_no_graph_is_kept() -> None:
    parameter = torch.nn.Parameter(torch.zeros(4))
    average = [torch.ones(4)]
    ema_update([average], [parameter], [0.5])
    assert not average[0].requires_grad
    assert torch.equal(parameter, torch.zeros(4))


@pytest.mark.parametrize(
    ("averages", "decays", "message"),
    [
        ([[torch.ones(4, dtype=torch.bfloat16)]], [0.9], "average 0 is torch.bfloat16"),
        ([[torch.ones(3)]], [0.9], r"average 0 has shape \[3\], its parameter \[4\]"),
        ([[torch.ones(4)] * 2], [0.9], "2 tensors, but there are 1 parameters"),
        ([[torch.ones(4)]], [0.9, 0.99], "1 averages but 2 decays"),
        ([[torch.ones(4)]], [1.5], r"in \[0, 1\], got 1.5"),
    ],
)
def test_what_does_not_fit_is_named(averages: list, decays: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ema_update(averages, [torch.ones(4)], decays)
