"""The kernels in plain PyTorch: the oracle of their tests, and what computes where a kernel does not run.

Written in operations that torch.compile fuses.
"""

from __future__ import annotations

import math
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


def noise(seed: int, positions: Tensor, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Twin of kernels.noise.noise. Arguments are not checked."""
    C, H, W = shape
    values = C * H * W
    low, high = positions, positions >> 32
    block = torch.arange(math.ceil(values / 4), device=positions.device)
    words = philox(seed, (low[:, None], high[:, None], block, torch.zeros_like(block)))
    normal = torch.cat((*_normals(words[0], words[1]), *_normals(words[2], words[3])), dim=1)
    normal = normal[:, :values].reshape(-1, H, W, C).permute(0, 3, 1, 2)
    words = philox(seed, (low, high, torch.zeros_like(low), torch.ones_like(low)))
    # A float32 holds 24 bits: more would round up to 1.
    uniform = torch.stack([(word >> 8).float() * 2**-24 for word in words])
    return normal.contiguous(memory_format=torch.channels_last), uniform


def philox(seed: int, counter: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10 (Salmon et al. 2011, section 3.3) of four words of a counter, under the 64 bits of `seed`.

    Words are the low 32 bits of int64 tensors, which broadcast. Returns four words in int64.
    """
    # A mask also hides a counter that counts from Inductor, whose C++ multiplies the steps of an index in 32 bits.
    a, b, c, d = torch.broadcast_tensors(*(word & _WORD for word in counter))
    for round_number in range(10):
        # The key's words grow with the rounds by the golden ratio and by sqrt(3) - 1, as fractions of 2^32.
        low_key = (seed + round_number * 0x9E3779B9) & _WORD
        high_key = ((seed >> 32) + round_number * 0xBB67AE85) & _WORD
        # The factors 0xD2511F53 and 0xCD9E8D57 less 2^32: their products with a word, all of 64 bits, do not overflow
        # int64, which a compiler takes to be impossible. Low halves are the same, high halves less by the word.
        first, second = (0xD2511F53 - 2**32) * a, (0xCD9E8D57 - 2**32) * c
        # Low halves are cut out only at the end: what is above them is masked with what they enter.
        a, b, c, d = (
            (second >> 32).add_(c).bitwise_xor_(b).bitwise_xor_(low_key).bitwise_and_(_WORD),
            second,
            (first >> 32).add_(a).bitwise_xor_(d).bitwise_xor_(high_key).bitwise_and_(_WORD),
            first,
        )
    return a, b & _WORD, c, d & _WORD


_WORD = 2**32 - 1


def _normals(radius: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Two standard normals of two words (Box and Muller 1958)."""
    # From the middle of the word's interval of 2^-32, so that the logarithm never sees 0, and no value passes 6.8.
    length = (-2 * (radius.float() * 2**-32 + 2**-33).log()).sqrt()
    around_zero = (angle - 2**31).float() * (math.pi * 2**-31)  # where float32 is finest
    return length * around_zero.cos(), length * around_zero.sin()
