"""Cases of kernels/: each operation at the shapes of the UNets, against what one writes in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import stock
from benchmarks.comparison import Arithmetic, Comparison, Decision, Step
from benchmarks.shapes import PAPER, NormShape, attention_shapes, group_norm_shapes
from engine.compilation import Compilation
from kernels import attention as attention_kernels
from kernels import group_norm as group_norm_kernels
from kernels import noise as noise_kernels
from kernels import reference
from kernels.ema import ema_update as foreach_ema_update
from sgdm.models.config import UNetConfig
from sgdm.models.unet import UNet

Peers = dict[str, Callable[..., Tensor]]
"""By name, differentiable functions of the inputs."""

DECAYS = (0.999, 0.9999)


def group_norm(device: torch.device, quick: bool) -> Iterator[Comparison]:
    """Group norm, scale and shift where the UNets have them, SiLU; in channels_last memory."""
    shapes = group_norm_shapes()
    # A backward pass is measured again and again on one forward pass: compiled, it must not work in that one's memory.
    with torch._functorch.config.patch(donated_buffer=False):
        for shape in [shapes[0], shapes[-1]] if quick else shapes:
            for B in _batches(device, quick, (64, 128, 512)):
                yield from _group_norm_of(B, shape, device, compiles=device.type == "cuda" or not quick)


def _group_norm_of(B: int, shape: NormShape, device: torch.device, compiles: bool) -> Iterator[Comparison]:
    torch._dynamo.reset()  # else every shape so far counts towards the limit of recompilations
    # As inside a compiled network, where alone there is a choice between backends.
    compiled = Compilation("default")
    functions: dict[str, Callable[..., Tensor]] = {"eager": stock.group_norm}
    if compiles:
        functions["inductor"] = compiled(reference.group_norm)
    if device.type == "cuda":
        functions["triton"] = compiled(partial(group_norm_kernels.group_norm, backend="triton"))

    C, H, W = shape.channels, shape.height, shape.width
    random = partial(torch.randn, device=device, dtype=_dtype(device))
    x, gradient = (random(B, C, H, W).to(memory_format=torch.channels_last) for _ in range(2))
    inputs = [x, random(C), random(C)] + ([random(B, C), random(B, C)] if shape.scaled else [])
    yield from _comparisons(
        f"{B}x{C}x{H}x{W}{' scaled' if shape.scaled else ''}",
        {name: partial(_normalise, function, shape.num_groups) for name, function in functions.items()},
        inputs,
        gradient,
        ("forward", "backward", "both"),
        decision=Decision("group_norm", group_norm_kernels.dispatch_key(x), {"inductor": "plain", "triton": "triton"}),
    )


def _normalise(function: Callable[..., Tensor], num_groups: int, *inputs: Tensor) -> Tensor:
    x, weight, bias, scale, shift = (*inputs, None, None)[:5]
    return function(x, weight, bias, num_groups, scale=scale, shift=shift, activation="silu")


def attention(device: torch.device, quick: bool) -> Iterator[Comparison]:
    """Self-attention through every backend that works on the device."""
    reasons = attention_kernels.attention_backends(device)
    backends: list[Any] = ["auto", *(name for name, reason in reasons.items() if reason is None)]
    peers: Peers = {backend: partial(attention_kernels.attention, backend=backend) for backend in backends}
    for tokens, heads, dim in attention_shapes():
        for B in _batches(device, quick, (64, 512)):
            # Views in the layout that the UNet has them in: q, k and v of a token side by side.
            qkv, results = (
                torch.randn(B, tokens, parts, heads, dim, device=device, dtype=_dtype(device)) for parts in (3, 1)
            )
            q, k, v, gradient = (part.transpose(1, 2) for part in (*qkv.unbind(2), *results.unbind(2)))
            # q k^T and its product with v, forward; each has two products in its backward pass.
            forward_flops = 2 * 2 * B * heads * tokens**2 * dim
            yield from _comparisons(
                f"{B}x{heads}x{tokens}x{dim}",
                peers,
                [q, k, v],
                gradient,
                ("forward", "both"),
                forward_flops,
                Decision("attention", attention_kernels.dispatch_key(q, k), {name: name for name in backends[1:]}),
            )


def ema_update(device: torch.device, quick: bool) -> Iterator[Comparison]:
    """Two averages of the float32 weights of a network."""
    config = UNetConfig(channels=32) if quick else PAPER
    with torch.device("meta"):
        shapes = [parameter.shape for parameter in UNet(config).parameters()]
    parameters = [torch.randn(shape, device=device) for shape in shapes]
    averages = [[torch.randn_like(parameter) for parameter in parameters] for _ in DECAYS]
    size = sum(parameter.nbytes for parameter in parameters)

    @torch.no_grad()
    def lerp_each() -> None:
        for average, decay in zip(averages, DECAYS, strict=True):
            for mean, parameter in zip(average, parameters, strict=True):
                mean.lerp_(parameter, 1 - decay)

    yield Comparison(
        f"{size / 4e6:.1f} M weights, {len(shapes)} tensors",
        {
            "lerp_ of each tensor": lambda: lerp_each,
            "ema_update": lambda: partial(foreach_ema_update, averages, parameters, DECAYS),
        },
        device,
        bytes=size * (1 + 2 * len(DECAYS)),
    )


def noise(device: torch.device, quick: bool) -> Iterator[Comparison]:
    """Of images by their numbers, next to the generator of PyTorch, which draws in turn."""
    for size in (32, 64):
        for B in _batches(device, quick, (64, 1024)):
            yield _noise_of(B, (3, size, size), device, compiles=device.type == "cuda" or not quick)


def _noise_of(B: int, shape: tuple[int, int, int], device: torch.device, compiles: bool) -> Comparison:
    torch._dynamo.reset()
    positions = torch.arange(B, device=device)
    functions: dict[str, Callable[..., object]] = {"plain": partial(noise_kernels.noise, backend="plain")}
    if compiles:
        functions["inductor"] = torch.compile(functions["plain"], fullgraph=True, dynamic=False)
    if device.type == "cuda":
        functions["triton"] = partial(noise_kernels.noise, backend="triton")

    def stock_noise() -> tuple[Tensor, Tensor]:
        return torch.randn(B, *shape, device=device), torch.rand(4, B, device=device)

    normal, uniform = stock_noise()
    return Comparison(
        f"{B}x{'x'.join(map(str, shape))}",
        {
            "torch.randn": lambda: stock_noise,
            **{name: partial(_drawing, function, positions, shape) for name, function in functions.items()},
        },
        device,
        bytes=positions.nbytes + normal.nbytes + uniform.nbytes,
    )


def _drawing(function: Callable[..., object], positions: Tensor, shape: tuple[int, int, int]) -> Step:
    return lambda: function(0, positions, shape)


def _comparisons(
    name: str,
    peers: Peers,
    inputs: Sequence[Tensor],
    gradient: Tensor,
    passes: Sequence[str],
    forward_flops: int | None = None,
    decision: Decision | None = None,
) -> Iterator[Comparison]:
    """A comparison for each pass; `gradient` is that of the loss by the peers' result. Both passes together decide."""
    for tensor in inputs:
        tensor.requires_grad_()
    size = sum(tensor.nbytes for tensor in inputs)
    # The inputs' gradients are as large as the inputs, and the result as its gradient.
    bytes_of = {"forward": size + gradient.nbytes, "backward": size + gradient.nbytes + size}
    bytes_of["both"] = bytes_of["forward"] + bytes_of["backward"]
    arithmetic: Arithmetic = "bf16" if gradient.dtype == torch.bfloat16 else "fp32"
    for which in passes:
        yield Comparison(
            f"{name}, {'both passes' if which == 'both' else which}",
            {peer: partial(_PASSES[which], function, inputs, gradient) for peer, function in peers.items()},
            gradient.device,
            bytes=bytes_of[which],
            flops=None if forward_flops is None else forward_flops * (3 if which == "both" else 1),
            arithmetic=arithmetic,
            decision=decision if which == "both" else None,
        )


def _forward(function: Callable[..., Tensor], inputs: Sequence[Tensor], gradient: Tensor) -> Step:
    """As in training: it keeps what the backward pass needs."""
    return lambda: function(*inputs)


def _backward(function: Callable[..., Tensor], inputs: Sequence[Tensor], gradient: Tensor) -> Step:
    y = function(*inputs)
    return lambda: torch.autograd.grad(y, inputs, gradient, retain_graph=True)


def _both(function: Callable[..., Tensor], inputs: Sequence[Tensor], gradient: Tensor) -> Step:
    return lambda: torch.autograd.grad(function(*inputs), inputs, gradient)


_PASSES: dict[str, Callable[..., Any]] = {"forward": _forward, "backward": _backward, "both": _both}


def _dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "cpu" else torch.bfloat16


def _batches(device: torch.device, quick: bool, on_gpu: tuple[int, ...]) -> tuple[int, ...]:
    if quick:
        return (2,)
    return (8,) if device.type == "cpu" else on_gpu
