"""Group normalisation against float64 arithmetic, its gradients, its layout and its refusals."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.group_norm import group_norm


def reference(
    x: Tensor, weight: Tensor, bias: Tensor, num_groups: int, scale: Tensor | None, shift: Tensor | None
) -> Tensor:
    y = F.group_norm(x, num_groups, weight, bias, eps=1e-5)
    if scale is not None and shift is not None:
        y = y * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
    return F.silu(y)


def arguments(B: int, C: int, H: int, W: int, mean: float = 0.0) -> tuple[Tensor, ...]:
    """Random x with the given mean, and a random affine map, scale and shift, in float64."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return normal(B, C, H, W) + mean, normal(C), normal(C), normal(B, C), normal(B, C)


@pytest.mark.parametrize("with_scale", [True, False])
@pytest.mark.parametrize(("C", "num_groups"), [(8, 8), (16, 4), (12, 2), (40, 1)])
def test_equals_group_norm_in_float64(C: int, num_groups: int, with_scale: bool) -> None:
    x, weight, bias, scale, shift = arguments(2, C, 5, 3)
    told = (scale, shift) if with_scale else (None, None)
    expected = reference(x, weight, bias, num_groups, *told)
    actual = group_norm(x, weight, bias, num_groups, scale=told[0], shift=told[1], activation="silu")
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def test_gradients_are_right() -> None:
    def function(*tensors: Tensor) -> Tensor:
        x, weight, bias, scale, shift = tensors
        return group_norm(x, weight, bias, 2, scale=scale, shift=shift, activation="silu")

    assert torch.autograd.gradcheck(function, [a.requires_grad_() for a in arguments(2, 4, 2, 3)])


@pytest.mark.parametrize("mean", [0.0, 1000.0])
def test_float32_stays_exact_far_from_zero(mean: float) -> None:
    x, weight, bias, scale, shift = (a.float() for a in arguments(2, 32, 8, 8, mean))
    expected = reference(*(a.double() for a in (x, weight, bias)), 8, scale.double(), shift.double())
    actual = group_norm(x, weight, bias, 8, scale=scale, shift=shift, activation="silu")
    # float32 carries about 1e-4 of a standard deviation at mean 1000; E[x^2] - E[x]^2 would be wrong by 7 %.
    assert (actual - expected).norm() / expected.norm() < 2e-4


def test_bfloat16_is_as_good_as_its_input() -> None:
    x, weight, bias, scale, shift = (a.float() for a in arguments(2, 32, 8, 8))
    rounded = x.bfloat16()
    exact = group_norm(rounded.float(), weight, bias, 8, scale=scale, shift=shift, activation="silu")
    actual = group_norm(rounded, weight, bias, 8, scale=scale, shift=shift, activation="silu")
    assert actual.dtype == torch.bfloat16
    torch.testing.assert_close(actual, exact.bfloat16(), rtol=0, atol=0)


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_layout_is_kept_in_both_directions(memory_format: torch.memory_format) -> None:
    x, weight, bias, *_ = (a.float() for a in arguments(2, 8, 4, 4))
    x = x.contiguous(memory_format=memory_format).requires_grad_()
    y = group_norm(x, weight, bias, 2, activation="silu")
    (gradient,) = torch.autograd.grad(y, x, torch.randn_like(y))
    assert y.stride() == x.stride()
    assert gradient.stride() == x.stride()


def test_constant_input_gives_the_bias() -> None:
    _, weight, bias, *_ = arguments(2, 8, 4, 4)
    y = group_norm(torch.full((2, 8, 4, 4), 3.0, dtype=torch.float64), weight, bias, 2)
    torch.testing.assert_close(y, bias[None, :, None, None].expand(2, 8, 4, 4))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_groups": 3}, "8 channels into 3 equal groups"),
        ({"weight": torch.ones(4)}, r"weight and bias of shape \[8\]"),
        ({"scale": torch.zeros(2, 8)}, "scale and shift together"),
        ({"scale": torch.zeros(2, 4), "shift": torch.zeros(2, 8)}, r"scale of shape \[2, 8\], got \[2, 4\]"),
        ({"x": torch.zeros(2, 8, 4)}, r"\[B, C, H, W\], got \[2, 8, 4\]"),
    ],
)
def test_shapes_that_do_not_fit_are_named(changed: dict, message: str) -> None:
    given = {"x": torch.zeros(2, 8, 4, 4), "weight": torch.ones(8), "bias": torch.zeros(8), "num_groups": 2}
    with pytest.raises(ValueError, match=message):
        group_norm(**{**given, **changed})
