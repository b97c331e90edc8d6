"""Group normalisation with a per-sample scale and shift and an activation, in one call.

On a GPU it is a Triton kernel behind torch.ops.sgdm.group_norm (a fallback kernel to Inductor, so a graph stays whole);
elsewhere the plain twin of kernels/reference.py, which Inductor fuses.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from kernels import dispatch, group_norm_triton, reference

Backend = Literal["auto", "triton", "plain"]
BACKENDS = tuple(name for name in get_args(Backend) if name != "auto")


def group_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    num_groups: int,
    eps: float = 1e-5,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    activation: Literal["silu"] | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """activation(norm(x) * (1 + scale) + shift), norm is group normalisation (Wu and He, arXiv 1803.08494).

    x [B, C, H, W] in channels_last memory, of any floating dtype; weight and bias [C]; scale and shift [B, C], both or
    neither. Statistics and arithmetic are in float32 (float64 for float64 `x`). Returns channels_last of the dtype of
    `x`; two calls agree bit for bit, and so do their gradients.
    "auto" is the Triton kernel on a GPU and the plain twin elsewhere, for float64, and, while torch.compile traces,
    where it was measured to be faster (kernels/dispatch.py).
    ValueError where the shapes do not fit together, for another memory layout, and for a backend that cannot run.
    """
    _check(x, weight, bias, num_groups, scale, shift)
    chosen = _preferred(x) if backend == "auto" else backend
    reason = refusal(chosen, x.device, x.dtype, values=math.prod(x.shape[1:]))
    if reason is not None:
        raise ValueError(f"group_norm backend {chosen!r} {reason}")
    if chosen == "plain":
        return reference.group_norm(x, weight, bias, num_groups, eps, scale, shift, activation)
    y, _, _ = _group_norm(x, weight, bias, num_groups, eps, scale, shift, activation == "silu")
    return y


def refusal(backend: str, device: torch.device, dtype: torch.dtype = torch.float32, values: int = 1) -> str | None:
    """None where a backend runs tensors of this device and dtype, of so many values an image; else why it does not."""
    if backend not in BACKENDS:
        return f"is unknown; choose auto or one of {', '.join(BACKENDS)}"
    if backend == "triton" and device.type != "cuda" and not group_norm_triton.INTERPRETED:
        return f"runs on a CUDA device, not on {device.type}; choose auto or plain"
    if backend == "triton" and dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"takes float32, bfloat16 and float16, not {dtype}; choose auto or plain"
    if backend == "triton" and values >= 2**31:
        return f"takes fewer than 2^31 values an image, not {values:,}; choose auto or plain"
    return None


def dispatch_key(x: Tensor) -> str:
    """What a measured choice depends on. The batch is left out: it scales every backend alike."""
    _, C, H, W = x.shape
    return f"{str(x.dtype).removeprefix('torch.')} {C}x{H}x{W}"


def _preferred(x: Tensor) -> str:
    if x.device.type != "cuda" or refusal("triton", x.device, x.dtype, math.prod(x.shape[1:])) is not None:
        return "plain"
    # Not compiled, the twin is a dozen kernels: it is no choice then, whatever was measured.
    measured = dispatch.choice("group_norm", x.device, dispatch_key(x)) if torch.compiler.is_compiling() else None
    return measured or "triton"


# Strides are exact: Inductor gives the kernels channels_last, as they were traced.
_TAGS = (torch.Tag.needs_exact_strides, torch.Tag.pt2_compliant_tag)


@torch.library.custom_op("sgdm::group_norm", mutates_args=(), tags=_TAGS)
def _group_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    num_groups: int,
    eps: float,
    scale: Tensor | None,
    shift: Tensor | None,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    with torch.cuda.device_of(x):  # Triton launches on the current device
        return group_norm_triton.forward(x, weight, bias, num_groups, eps, scale, shift, silu)


@_group_norm.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, num_groups: int, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    y = torch.empty_like(x, memory_format=torch.channels_last)
    mean = x.new_empty((x.shape[0], num_groups), dtype=torch.float32)
    return y, mean, torch.empty_like(mean)


@torch.library.custom_op("sgdm::group_norm_backward", mutates_args=(), tags=_TAGS)
def _group_norm_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    num_groups: int,
    scale: Tensor | None,
    shift: Tensor | None,
    silu: bool,
    mean: Tensor,
    rstd: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    with torch.cuda.device_of(x):
        return group_norm_triton.backward(dy, x, weight, bias, num_groups, scale, shift, silu, mean, rstd)


@_group_norm_backward.register_fake
def _(dy: Tensor, x: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    sums = x.new_empty(x.shape[:2], dtype=torch.float32)
    return torch.empty_like(x, memory_format=torch.channels_last), sums, torch.empty_like(sums)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, bias, ctx.num_groups, _, scale, shift, ctx.silu = inputs
    _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.save_for_backward(x, weight, bias, scale, shift, mean, rstd)


def _differentiate(ctx: Any, dy: Tensor, *_: object) -> tuple[Tensor | None, ...]:
    x, weight, bias, scale, shift, mean, rstd = ctx.saved_tensors
    # What comes after may hand back any layout, expanded scalars too.
    dy = dy.contiguous(memory_format=torch.channels_last)
    dx, gradient_sum, product_sum = _group_norm_backward(
        dy, x, weight, bias, ctx.num_groups, scale, shift, ctx.silu, mean, rstd
    )
    # By normalised * weight + bias, which is then scaled and shifted. Sums over images in a fixed order, no atomics.
    dscale = dshift = None
    if scale is not None:
        dscale = (weight * product_sum + bias * gradient_sum).to(scale.dtype)
        dshift = gradient_sum.to(shift.dtype)
        factor = 1 + scale.float()
        product_sum, gradient_sum = factor * product_sum, factor * gradient_sum
    dweight, dbias = product_sum.sum(0).to(weight.dtype), gradient_sum.sum(0).to(bias.dtype)
    return dx, dweight, dbias, None, None, dscale, dshift, None


_group_norm.register_autograd(_differentiate, setup_context=_save)


def _check(
    x: Tensor, weight: Tensor, bias: Tensor, num_groups: int, scale: Tensor | None, shift: Tensor | None
) -> None:
    if x.dim() != 4:
        raise ValueError(f"group_norm takes x of shape [B, C, H, W], got {list(x.shape)}")
    B, C = x.shape[:2]
    # A meta tensor has no memory, and torch's rules for its strides are not those of a device.
    if not x.is_meta and not x.is_contiguous(memory_format=torch.channels_last):
        raise ValueError(
            f"group_norm takes x in channels_last memory, got shape {list(x.shape)} with strides {list(x.stride())}; "
            "call x.contiguous(memory_format=torch.channels_last) where the copy is meant"
        )
    if C % num_groups:
        raise ValueError(f"group_norm cannot split {C} channels into {num_groups} equal groups")
    if weight.shape != (C,) or bias.shape != (C,):
        raise ValueError(
            f"group_norm takes weight and bias of shape [{C}], got {list(weight.shape)}, {list(bias.shape)}"
        )
    if (scale is None) != (shift is None):
        raise ValueError("group_norm takes scale and shift together, got only one of them")
    for name, tensor in (("scale", scale), ("shift", shift)):
        if tensor is not None and tensor.shape != (B, C):
            raise ValueError(f"group_norm takes {name} of shape [{B}, {C}], got {list(tensor.shape)}")
