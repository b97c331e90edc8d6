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
    dtype = torch.promote_types(x.dtype, torch.float32)
    pixels = x.shape[2] * x.shape[3]

    # Two passes, because E[x^2] - E[x]^2 cancels when the mean is far from zero, and the second corrects the rounding
    # of the first (Chan, Golub and LeVeque 1983). The result does not depend on what is subtracted, so no gradient
    # flows there. Statistics are of channels first: in channels_last memory a sum over pixels alone runs along whole
    # vectors of channels. A channel's numbers are stacked and taken apart where they go to every pixel or come from
    # there, for Inductor on a CPU: it stores what is stacked, forward and backward, and reads vectors of it, where it
    # would else look up a group's number for every value.
    values = x.to(dtype)
    centre = values.detach().sum(dim=(2, 3)) / pixels
    centred = values - _at_pixels(centre)
    rest, squares = (torch.stack((centred.sum(dim=(2, 3)), centred.square().sum(dim=(2, 3)))) / pixels).unbind()
    channel_mean, channel_variance = centre + rest, squares - rest.square()
    mean = _mean_of_groups(channel_mean, num_groups)
    variance = _mean_of_groups(channel_variance + (channel_mean - mean).square(), num_groups)

    gain = torch.rsqrt(variance + eps) * weight.to(dtype)
    offset = bias.to(dtype)
    if scale is not None and shift is not None:
        gain = gain * (1 + scale.to(dtype))
        offset = offset * (1 + scale.to(dtype)) + shift.to(dtype)
    gain, offset = torch.stack((gain, offset + (centre - mean) * gain)).unbind()
    y = torch.addcmul(_at_pixels(offset), centred, _at_pixels(gain))
    if activation == "silu":
        y = F.silu(y)
    return y.to(x.dtype)


def _at_pixels(of_channel: Tensor) -> Tensor:
    """[B, C] to [B, C, 1, 1]."""
    return of_channel[:, :, None, None]


def _mean_of_groups(of_channel: Tensor, num_groups: int) -> Tensor:
    """[B, C] to [B, C]: for every channel the mean over its group."""
    groups = of_channel.view(of_channel.shape[0], num_groups, -1)
    return groups.mean(dim=2, keepdim=True).expand_as(groups).reshape(of_channel.shape)
