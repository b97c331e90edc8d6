"""Group normalisation against float64 arithmetic, its gradients, its layout, its registration and its refusals.

The Triton kernel runs in Triton's interpreter on CPU tensors, or on a GPU where there is one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from numerics import assert_as_good_as
from torch import Tensor

from kernels import group_norm_triton, reference
from kernels.group_norm import _group_norm, group_norm, refusal

interpreted = pytest.param(
    "cpu", marks=pytest.mark.skipif(not group_norm_triton.INTERPRETED, reason="on the GPU instead"), id="interpreter"
)
on_each_device = pytest.mark.parametrize("device", [interpreted, pytest.param("cuda", marks=pytest.mark.gpu)])


class Case(NamedTuple):
    B: int
    C: int
    num_groups: int
    H: int
    W: int
    mean: float = 0.5
    with_scale: bool = True
    activation: Any = "silu"


CASES = {
    "1 channel a group": Case(2, 8, 8, 5, 7),
    "4 channels a group": Case(3, 32, 8, 9, 5),
    "6 channels a group": Case(2, 96, 16, 7, 3),
    "40 channels a group": Case(1, 80, 2, 11, 3),
    "one group": Case(2, 24, 1, 3, 3),
    "a single pixel": Case(3, 16, 4, 1, 1),
    "a row of pixels": Case(2, 16, 4, 1, 37),
    "plain": Case(2, 32, 8, 8, 8, with_scale=False, activation=None),
    "no activation": Case(2, 32, 8, 8, 8, activation=None),
    "no scale": Case(2, 32, 8, 8, 8, with_scale=False),
    "far from zero": Case(2, 32, 8, 9, 9, mean=1000.0),
    "below zero": Case(2, 32, 8, 9, 9, mean=-30.0, with_scale=False),
    "read twice": Case(1, 8, 2, 65, 67),
    "read twice, far from zero": Case(1, 8, 2, 65, 67, mean=1000.0),
    "read twice, 6 channels a group": Case(1, 12, 2, 48, 49),
}


def arguments(case: Case, dtype: torch.dtype, device: str) -> dict[str, Any]:
    """Random x with the case's mean, a random affine map, and scale and shift as two halves of one tensor."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x = (normal(case.B, case.C, case.H, case.W) + case.mean).to(device, dtype)
    given = {
        "x": x.contiguous(memory_format=torch.channels_last),
        # Weights stay float32 under autocast, as in training.
        "weight": normal(case.C).to(device, torch.float32),
        "bias": normal(case.C).to(device, torch.float32),
        "num_groups": case.num_groups,
        "activation": case.activation,
    }
    if case.with_scale:
        given["scale"], given["shift"] = normal(case.B, 2 * case.C).to(device, dtype).chunk(2, dim=1)
    return given


def eager(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    num_groups: int,
    eps: float = 1e-5,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """What a PyTorch user writes: every operation in the dtype of x."""
    y = F.group_norm(x, num_groups, weight.to(x.dtype), bias.to(x.dtype), eps)
    if scale is not None and shift is not None:
        y = y * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
    return F.silu(y) if activation == "silu" else y


def run(function: Any, given: dict[str, Any], dy: Tensor, **more: Any) -> dict[str, Tensor]:
    """The output and every gradient."""
    leaves = {
        name: value.detach().clone(memory_format=torch.preserve_format).requires_grad_()
        for name, value in given.items()
        if isinstance(value, Tensor)
    }
    y = function(**{**given, **leaves}, **more)
    gradients = torch.autograd.grad(y, list(leaves.values()), dy.to(y.dtype))
    return {"y": y} | {f"d{name}": gradient for name, gradient in zip(leaves, gradients, strict=True)}


def in_double(given: dict[str, Any]) -> dict[str, Any]:
    return {name: value.double() if isinstance(value, Tensor) else value for name, value in given.items()}


def compare_with_eager(case: Case, dtype: torch.dtype, device: str) -> None:
    given = arguments(case, dtype, device)
    dy = torch.randn(given["x"].shape, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    exact = run(eager, in_double(given), dy.double())
    theirs = run(eager, given, dy)
    ours = run(group_norm, given, dy, backend="triton")
    assert list(ours) == list(exact)
    if (case.H * case.W) * (case.C // case.num_groups) == 1:
        del exact["dx"], theirs["dx"]  # nothing is left of a value that is its own mean
    for name in exact:
        assert_as_good_as(ours[name], theirs[name], exact[name], name)


@on_each_device
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_triton_is_as_good_as_eager(case: Case, dtype: torch.dtype, device: str) -> None:
    compare_with_eager(case, dtype, device)


@pytest.mark.slow
@on_each_device
def test_triton_is_as_good_as_eager_at_batch_512(device: str) -> None:
    compare_with_eager(Case(512, 16, 4, 3, 3), torch.bfloat16, device)


@on_each_device
@pytest.mark.parametrize("backend", ["triton", "plain"])
def test_constant_input_gives_the_bias_and_finite_gradients(backend: str, device: str) -> None:
    given = arguments(Case(2, 8, 2, 4, 4, with_scale=False, activation=None), torch.float32, device)
    given["x"].fill_(3.0)
    results = run(group_norm, given, torch.ones_like(given["x"]), backend=backend)
    torch.testing.assert_close(results["y"], given["bias"][None, :, None, None].expand(2, 8, 4, 4))
    assert all(result.isfinite().all() for result in results.values())


@on_each_device
@pytest.mark.parametrize("layout", ["nchw", "expanded", "sliced"])
def test_any_layout_of_the_incoming_gradient(layout: str, device: str) -> None:
    given = arguments(Case(2, 8, 2, 6, 6), torch.float32, device)
    dy = {
        "nchw": torch.randn(2, 8, 6, 6, device=device),
        "expanded": torch.ones((), device=device).expand(2, 8, 6, 6),
        "sliced": torch.randn(2, 8, 6, 12, device=device)[..., ::2],
    }[layout]
    expected = run(group_norm, given, dy, backend="plain")
    for name, actual in run(group_norm, given, dy, backend="triton").items():
        torch.testing.assert_close(actual, expected[name], rtol=1e-4, atol=1e-4)


@on_each_device
def test_two_runs_are_equal_bit_for_bit(device: str) -> None:
    given = arguments(Case(4, 32, 8, 9, 9), torch.bfloat16, device)
    dy = torch.randn_like(given["x"])
    first, second = (run(group_norm, given, dy, backend="triton") for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@on_each_device
@pytest.mark.parametrize("case", [CASES["4 channels a group"], CASES["plain"]])
def test_operator_is_registered_whole(case: Case, device: str) -> None:
    given = arguments(case, torch.float32, device)
    tensors = [given.get(name) for name in ("x", "weight", "bias", "scale", "shift")]
    x, weight, bias, scale, shift = (tensor if tensor is None else tensor.requires_grad_() for tensor in tensors)
    torch.library.opcheck(_group_norm, (x, weight, bias, case.num_groups, 1e-5, scale, shift, True))


@on_each_device
@pytest.mark.parametrize("backend", ["triton", "plain"])
def test_compiles_without_a_graph_break_and_keeps_the_layout(backend: Any, device: str) -> None:
    given = arguments(Case(2, 8, 2, 6, 6), torch.float32, device)
    dy = torch.randn_like(given["x"])
    torch._dynamo.reset()
    traced = torch.compile(group_norm, backend="aot_eager", fullgraph=True, dynamic=False)
    expected = run(group_norm, given, dy, backend=backend)
    actual = run(traced, given, dy, backend=backend)
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], rtol=1e-5, atol=1e-5)
    for name in ("y", "dx"):
        assert actual[name].is_contiguous(memory_format=torch.channels_last)
        assert expected[name].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.slow
@on_each_device
def test_inductor_hands_the_kernel_its_layout(device: str) -> None:
    """Between convolutions, whose layout Inductor chooses; forward and backward."""
    torch.manual_seed(0)
    first, second = (torch.nn.Conv2d(8, 8, 3, padding=1, device=device) for _ in range(2))
    weight, bias = torch.rand(8, device=device), torch.rand(8, device=device)

    def block(x: Tensor) -> Tensor:
        return second(group_norm(first(x), weight, bias, 2, activation="silu", backend="triton"))

    torch._dynamo.reset()
    results = []
    for function in (block, torch.compile(block, fullgraph=True, dynamic=False)):
        x = torch.randn(2, 8, 8, 8, generator=torch.Generator().manual_seed(0)).to(device)
        x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
        y = function(x)
        results.append((y, *torch.autograd.grad(y.square().sum(), [x, *first.parameters()])))
    for actual, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_tiles_own_whole_groups_in_whole_sectors() -> None:
    for C, group_channels in ((128, 4), (192, 6), (320, 40), (8, 1), (12, 4), (640, 640)):
        for pixels in (1, 35, 64, 256, 1024, 4096, 65_536):
            for itemsize in (2, 4):
                tile = group_norm_triton.choose_tile(C, group_channels, pixels, itemsize)
                assert tile.program_channels % group_channels == 0
                assert tile.program_channels <= min(C, tile.channels)
                assert tile.program_channels * itemsize >= min(32, C * itemsize)
                assert not tile.in_registers or tile.pixels >= pixels


@pytest.mark.parametrize("with_scale", [True, False])
@pytest.mark.parametrize(("C", "num_groups"), [(8, 8), (16, 4), (12, 2), (40, 1)])
def test_twin_equals_group_norm_in_float64(C: int, num_groups: int, with_scale: bool) -> None:
    given = in_double(arguments(Case(2, C, num_groups, 5, 3, with_scale=with_scale), torch.float32, "cpu"))
    torch.testing.assert_close(reference.group_norm(**given), eager(**given), rtol=1e-10, atol=1e-10)


def test_gradients_of_the_twin_are_right() -> None:
    given = in_double(arguments(Case(2, 4, 2, 2, 3), torch.float32, "cpu"))
    tensors = {name: value.requires_grad_() for name, value in given.items() if isinstance(value, Tensor)}

    def function(*values: Tensor) -> Tensor:
        return reference.group_norm(**{**given, **dict(zip(tensors, values, strict=True))})

    assert torch.autograd.gradcheck(function, list(tensors.values()))


@pytest.mark.parametrize("case", [CASES["far from zero"], CASES["6 channels a group"]])
def test_twin_is_as_good_as_eager(case: Case) -> None:
    given = arguments(case, torch.bfloat16, "cpu")
    dy = torch.randn_like(given["x"])
    exact, theirs = run(eager, in_double(given), dy.double()), run(eager, given, dy)
    for name, ours in run(reference.group_norm, given, dy).items():
        assert_as_good_as(ours, theirs[name], exact[name], name)


def test_the_comparison_can_fail() -> None:
    exact = torch.randn(100, dtype=torch.float64)
    eager_result = (exact + 1e-3 * torch.randn(100, dtype=torch.float64)).float()
    assert_as_good_as(eager_result, eager_result, exact, "same")
    with pytest.raises(AssertionError, match="norm"):
        assert_as_good_as((exact + 1e-2 * torch.randn(100, dtype=torch.float64)).float(), eager_result, exact, "worse")
    with pytest.raises(AssertionError, match="bias"):
        assert_as_good_as(eager_result + 1e-3, eager_result, exact, "biased")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_groups": 3}, "8 channels into 3 equal groups"),
        ({"weight": torch.ones(4)}, r"weight and bias of shape \[8\]"),
        ({"scale": torch.zeros(2, 8)}, "scale and shift together"),
        ({"scale": torch.zeros(2, 4), "shift": torch.zeros(2, 8)}, r"scale of shape \[2, 8\], got \[2, 4\]"),
        ({"x": torch.zeros(2, 8, 4)}, r"\[B, C, H, W\], got \[2, 8, 4\]"),
        ({"x": torch.zeros(2, 8, 4, 4)}, r"channels_last memory, got shape \[2, 8, 4, 4\] with strides \[128, 16, 4"),
        ({"backend": "fast"}, "'fast' is unknown; choose auto or one of triton, plain"),
    ],
)
def test_what_does_not_fit_is_named(changed: dict, message: str) -> None:
    x = torch.zeros(2, 8, 4, 4).contiguous(memory_format=torch.channels_last)
    given = {"x": x, "weight": torch.ones(8), "bias": torch.zeros(8), "num_groups": 2}
    with pytest.raises(ValueError, match=message):
        group_norm(**{**given, **changed})


def test_triton_refuses_what_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(2, 8, 4, 4, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    weight, bias = torch.ones(8), torch.zeros(8)
    monkeypatch.setattr(group_norm_triton, "INTERPRETED", True)
    with pytest.raises(ValueError, match=r"takes float32, bfloat16 and float16, not torch\.float64"):
        group_norm(x, weight, bias, 2, backend="triton")
    large = torch.empty(1, device="cpu").expand(1, 2**16, 2**8, 2**7)  # of 2^31 values, and no memory
    assert "fewer than 2^31 values an image, not 2,147,483,648" in str(
        refusal("triton", large.device, large.dtype, large[0].numel())
    )
    monkeypatch.setattr(group_norm_triton, "INTERPRETED", False)
    with pytest.raises(ValueError, match="runs on a CUDA device, not on cpu; choose auto or plain"):
        group_norm(x.float(), weight, bias, 2, backend="triton")
