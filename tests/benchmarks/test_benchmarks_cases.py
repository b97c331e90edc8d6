"""The cases: shapes are the UNets' own, peers do the same work, amounts of work are right."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest
import torch
from torch import Tensor, nn

from benchmarks import stock
from benchmarks.cases import CASES
from benchmarks.comparison import Comparison
from benchmarks.diffusers_unet import DiffusersUNet, size_of
from benchmarks.run import run
from benchmarks.shapes import PAPER, AttentionShape, attention_shapes, group_norm_shapes
from benchmarks.unet import (
    DIFFUSERS,
    OURS,
    OURS_UNDER_DEEPSPEED,
    OURS_WITHOUT_EMA,
    RELEASED,
    TINY,
    _bare,
    _Batch,
    _Loss,
    trained,
)
from engine.peak import training_flops
from kernels import reference
from sgdm.conditions import Condition
from sgdm.models import layers
from sgdm.models.config import UNetConfig
from sgdm.models.unet import UNet

CPU = torch.device("cpu")


def comparisons(name: str, quick: bool = True) -> dict[str, Comparison]:
    return {comparison.name: comparison for comparison in CASES[name].comparisons(CPU, quick)}


def test_group_norms_are_those_of_the_unets() -> None:
    shapes = {shape[:3]: shape for shape in group_norm_shapes()}
    assert len(shapes) == len(group_norm_shapes())
    # The first and the widest of 64 pixels, the innermost of 32 pixels, and a joined skip connection of either.
    assert {(128, 64, 64), (384, 64, 64), (512, 8, 8), (768, 16, 16), (1024, 8, 8)} <= set(shapes)
    assert shapes[128, 64, 64].scaled and not shapes[384, 64, 64].scaled
    assert {shape.num_groups for shape in shapes.values()} == {32}


def test_attention_is_that_of_the_unets() -> None:
    shapes = attention_shapes()
    assert {shape.tokens for shape in shapes} == {64, 256, 1024}
    assert AttentionShape(tokens=256, heads=8, dim=64) in shapes


def test_peers_of_group_norm_return_the_same() -> None:
    found = comparisons("group_norm")
    assert list(found)[:3] == [
        "2x128x64x64 scaled, forward",
        "2x128x64x64 scaled, backward",
        "2x128x64x64 scaled, both passes",
    ]
    forward, backward, both = list(found.values())[:3]
    values, vector, modulation = 2 * 128 * 64 * 64 * 4, 128 * 4, 2 * 128 * 4
    inputs = values + 2 * vector + 2 * modulation
    assert forward.bytes == inputs + values
    assert backward.bytes == inputs + values + inputs
    assert both.bytes == forward.bytes + backward.bytes
    y = forward.peers["eager"]()()
    assert isinstance(y, Tensor) and y.shape == (2, 128, 64, 64) and y.requires_grad
    assert y.is_contiguous(memory_format=torch.channels_last)
    for alone, together in zip(backward.peers["eager"]()(), both.peers["eager"]()(), strict=True):
        torch.testing.assert_close(alone, together)


@pytest.mark.slow
def test_inductor_is_a_peer_of_group_norm() -> None:
    *_, both = islice(CASES["group_norm"].comparisons(CPU, False), 3)
    eager, inductor = (peer()() for peer in both.peers.values())
    for ours, theirs in zip(inductor, eager, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("activation", [None, "silu"])
def test_the_stock_group_norm_computes_ours(scaled: bool, activation: str | None) -> None:
    x, (weight, bias) = torch.randn(2, 8, 3, 5), torch.randn(2, 8)
    scale, shift = torch.randn(2, 2, 8) if scaled else (None, None)
    expected = reference.group_norm(x, weight, bias, 4, scale=scale, shift=shift, activation=activation)  # type: ignore[arg-type]
    torch.testing.assert_close(stock.group_norm(x, weight, bias, 4, scale, shift, activation), expected)


def test_peers_of_attention_return_the_same() -> None:
    found = comparisons("attention")
    forward, both = found["2x8x256x64, forward"], found["2x8x256x64, both passes"]
    assert forward.flops == 2 * (2 * 2 * 8 * 256 * 256 * 64) and both.flops == 3 * forward.flops
    assert forward.bytes == 4 * (2 * 8 * 256 * 64 * 4)
    assert next(iter(forward.peers)) == "auto" and len(forward.peers) > 2
    expected = forward.peers["auto"]()()
    for peer in forward.peers.values():
        torch.testing.assert_close(peer()(), expected, rtol=1e-4, atol=1e-4)


def test_peers_of_ema_update_move_every_average() -> None:
    (comparison,) = comparisons("ema_update").values()
    with torch.device("meta"):
        weights = [parameter.numel() for parameter in UNet(UNetConfig(channels=32)).parameters()]
    assert comparison.name == f"{sum(weights) / 1e6:.1f} M weights, {len(weights)} tensors"
    assert comparison.bytes == 4 * sum(weights) * (1 + 2 + 2)  # weights read, two averages read and written
    for peer in comparison.peers.values():
        peer()()


def test_peers_of_noise_draw_as_much() -> None:
    found = comparisons("noise")
    assert list(found) == ["2x3x32x32", "2x3x64x64"]
    comparison = found["2x3x64x64"]
    assert comparison.bytes == 2 * 8 + 4 * (2 * 3 * 64 * 64 + 4 * 2)
    assert list(comparison.peers) == ["torch.randn", "plain"]
    for peer in comparison.peers.values():
        normal, uniform = peer()()
        assert normal.shape == (2, 3, 64, 64) and uniform.shape == (4, 2)
        assert normal.dtype == uniform.dtype == torch.float32


def test_the_stock_network_is_the_same_function_in_the_other_layout() -> None:
    torch.manual_seed(0)
    ours = trained(UNet(TINY)).eval()
    theirs = stock.stock_network(ours).eval()
    layouts: list[bool] = []
    for module in theirs.modules():
        assert not isinstance(module, layers.GroupNorm | layers.PointwiseConvolution)
        if isinstance(module, nn.Conv2d | stock._GroupNorm):
            module.register_forward_pre_hook(lambda _, inputs: layouts.append(inputs[0].is_contiguous()))
    arguments = torch.randn(2, 3, 16, 16), torch.tensor([1.0, 500.0]), Condition(torch.tensor([0, 3]))
    expected, actual = ours(*arguments), theirs(*arguments)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    assert layouts and all(layouts)

    expected.square().mean().backward()
    actual.square().mean().backward()
    torch.testing.assert_close(theirs.input.weight.grad, ours.input.weight.grad, rtol=1e-3, atol=1e-6)
    assert ours.input.weight.grad.any(), "no layer is zero any more"


def test_the_training_step_of_the_paper() -> None:
    assert training_flops(PAPER) / 3e9 == pytest.approx(79.27, abs=0.005)
    (comparison,) = comparisons("train_step").values()
    assert comparison.images == 2 and comparison.flops == 2 * training_flops(TINY)
    assert list(comparison.peers) == [RELEASED, DIFFUSERS, OURS, OURS_WITHOUT_EMA, OURS_UNDER_DEEPSPEED]
    comparison.peers[RELEASED]()()


def test_the_network_of_diffusers_is_of_equal_shape() -> None:
    with torch.device("meta"):
        ours, theirs = UNet(PAPER), DiffusersUNet(PAPER)
    # Their condition is added to the time and not joined to it: the layers that it guides are narrower.
    weights, flops = size_of(PAPER)
    assert weights == pytest.approx(sum(parameter.numel() for parameter in ours.parameters()), rel=0.03)
    assert flops == pytest.approx(training_flops(PAPER) / 3, rel=0.001)
    assert convolutions(theirs) == convolutions(ours)
    x, time = torch.randn(2, 3, 16, 16), torch.tensor([1.0, 500.0])
    assert DiffusersUNet(TINY)(x, time, Condition(torch.tensor([0, 3]))).shape == x.shape


def convolutions(network: nn.Module) -> Counter[tuple[int, int]]:
    """How many 3x3 convolutions of each width in and out."""
    found = (module for module in network.modules() if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3))
    return Counter((module.in_channels, module.out_channels) for module in found)


def test_a_bare_training_step_trains() -> None:
    torch.manual_seed(0)
    batch, loss = _Batch(TINY, 2, CPU), _Loss(UNet(TINY), bf16=True, compiled=False)
    step = _bare(loss, batch)
    before = loss(batch.x, batch.time, batch.condition, batch.target).item()
    for _ in range(20):
        step()
    assert loss(batch.x, batch.time, batch.condition, batch.target).item() < before
    assert all(parameter.grad is None for parameter in loss.parameters())


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_no_peer_fails_on_a_gpu(name: str) -> None:
    report = run([CASES[name]], torch.device("cuda"), quick=True, seconds=0.05, out=None)
    (case,) = report["cases"]
    assert case["comparisons"]
    for comparison in case["comparisons"]:
        assert not {peer: figures["error"] for peer, figures in comparison["peers"].items() if "error" in figures}
        assert name != "group_norm" or list(comparison["peers"]) == ["eager", "inductor", "triton"]
