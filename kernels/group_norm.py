"""Group normalisation with a per-sample scale and shift and an activation, in one call.

Written in plain operations that torch.compile fuses: one read for the mean, one for the variance, one for
the rest.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def group_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    num_groups: int,
    eps: float = 1e-5,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    activation: Literal["silu"] | None = None,
) -> Tensor:
    """activation(norm(x) * (1 + scale) + shift), norm is group normalisation (Wu and He, arXiv 1803.08494).

    x [B, C, H, W] of any floating dtype; weight and bias [C]; scale and shift [B, C], both or neither.
    Statistics and arithmetic are in float32 (float64 for float64 `x`). The result has the dtype and
    the memory format of `x`.
    ValueError where the shapes do not fit together.
    """
    _check_shapes(x, weight, bias, num_groups, scale, shift)
    B, C, H, W = x.shape
    dtype = torch.promote_types(x.dtype, torch.float32)
    values_per_group = H * W * (C // num_groups)

    # Two passes, because E[x^2] - E[x]^2 cancels when the mean is far from zero. Pixels are summed before
    # channels, because in channels_last memory a sum over pixels alone runs along whole vectors of channels.
    centred = x.to(dtype)
    mean = _sum_over_groups(centred, num_groups) / values_per_group
    centred = centred - _per_channel(mean, C)[:, :, None, None]
    variance = _sum_over_groups(centred.square(), num_groups) / values_per_group

    gain = _per_channel(torch.rsqrt(variance + eps), C) * weight.to(dtype)
    offset = bias.to(dtype).expand(B, C)
    if scale is not None and shift is not None:
        gain = gain * (1 + scale.to(dtype))
        offset = offset * (1 + scale.to(dtype)) + shift.to(dtype)
    y = centred * gain[:, :, None, None] + offset[:, :, None, None]
    if activation == "silu":
        y = F.silu(y)
    return y.to(x.dtype)


def _sum_over_groups(x: Tensor, num_groups: int) -> Tensor:
    """[B, C, H, W] to [B, G]."""
    return x.sum(dim=(2, 3)).view(x.shape[0], num_groups, -1).sum(dim=2)


def _per_channel(statistic: Tensor, C: int) -> Tensor:
    """[B, G] to [B, C]."""
    B, G = statistic.shape
    return statistic[:, :, None].expand(B, G, C // G).reshape(B, C)


def _check_shapes(
    x: Tensor, weight: Tensor, bias: Tensor, num_groups: int, scale: Tensor | None, shift: Tensor | None
) -> None:
    if x.dim() != 4:
        raise ValueError(f"group_norm takes x of shape [B, C, H, W], got {list(x.shape)}")
    B, C = x.shape[:2]
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
