"""The kernels in plain PyTorch: the oracle of their tests, and what computes where a kernel does not run.

Written in operations that torch.compile fuses.
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
    """Twin of kernels.group_norm.group_norm, for any layout and also in float64. Arguments are not checked."""
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
