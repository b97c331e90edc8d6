"""The layers of a UNet.

Activations are [B, C, H, W] in channels_last memory from end to end; weights are contiguous, since ZeRO views
them as flat memory. Residual, attention and resampling layers are all called as layer(x, guide).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.attention import Backend as AttentionBackend
from kernels.attention import attention
from kernels.group_norm import Backend as GroupNormBackend
from kernels.group_norm import group_norm
from sgdm.models.embedding import Guide

Layer = TypeVar("Layer", bound=nn.Module)


class Backends(NamedTuple):
    """Which implementation of each kernel a network uses. It decides speed and rounding, and no weight."""

    attention: AttentionBackend = "auto"
    group_norm: GroupNormBackend = "auto"


class GroupNorm(nn.Module):
    """Group normalisation with an optional scale and shift, then SiLU.

    The number of groups is the largest divisor of the channels that is at most 32 and leaves 4 channels a
    group: 32 in the paper's networks. With 1 channel a group, a narrow network could not say how bright a whole
    channel is.
    """

    def __init__(self, channels: int, backends: Backends, activation: Literal["silu"] | None = "silu") -> None:
        super().__init__()
        self.activation, self.backend = activation, backends.group_norm
        most = max(1, min(32, channels // 4))
        self.num_groups = max(groups for groups in range(1, most + 1) if channels % groups == 0)
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        return group_norm(
            x,
            self.weight,
            self.bias,
            self.num_groups,
            scale=scale,
            shift=shift,
            activation=self.activation,
            backend=self.backend,
        )


class PointwiseConvolution(nn.Linear):
    """A 1x1 convolution as the matrix product that it is in channels_last memory; no copy, layout kept."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def convolution(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1)


def zeroed(layer: Layer) -> Layer:
    """The layer with its weights set to zero: what is added to the rest is nothing when training starts."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def halve(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 2)


def double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def keep(x: Tensor) -> Tensor:
    return x


_RESAMPLINGS: dict[str | None, Callable[[Tensor], Tensor]] = {"halve": halve, "double": double, None: keep}


class Dropout(nn.Dropout):
    """Dropout, whose mask is cheap to draw in a CPU's compiled graph too.

    Inductor draws a CPU's random numbers one at a time: of a residual block of 128 channels, that took more than both
    convolutions, forward and backward. A hash of a value's position and a seed runs in whole vectors and is computed
    again in the backward pass, so that no mask is stored.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and self.p and x.device.type == "cpu" and torch.compiler.is_compiling()):
            return super().forward(x)
        return torch.where(_hash_of_positions(x) >= int(self.p * 2**32 - 2**31), x / (1 - self.p), 0)


def _hash_of_positions(x: Tensor) -> Tensor:
    """int32 like x [B, C, H, W], evenly spread: the finaliser of MurmurHash3 (Appleby, public domain) but for its last
    shift, which moves the lowest bits alone."""
    B, C, H, W = x.shape
    seed = torch.randint(-(2**31), 2**31 - 1, (2,), dtype=torch.int32, device=x.device)
    # Counted in the order of channels_last memory. Signed shifts are made logical by a mask.
    value = torch.arange(B * C * H * W, dtype=torch.int32, device=x.device).view(B, H, W, C).permute(0, 3, 1, 2)
    value = value * -0x61C88647 ^ seed[0]  # neighbours far apart: Knuth's multiplicative hashing
    value = (value ^ ((value >> 16) & 0xFFFF)) * -0x7A143595
    return (value ^ ((value >> 13) & 0x7FFFF) ^ seed[1]) * -0x3D4D51CB


class Downsample(nn.Module):
    """Halves the resolution by a strided convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = convolution(channels, channels, stride=2)

    def forward(self, x: Tensor, guide: Guide) -> Tensor:
        return self.convolution(x)


class Upsample(nn.Module):
    """Doubles the resolution, then convolves."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = convolution(channels, channels)

    def forward(self, x: Tensor, guide: Guide) -> Tensor:
        return self.convolution(double(x))


class ResidualBlock(nn.Module):
    """x + convolution(norm(convolution(norm(x)), guide)), optionally at half or double the resolution of x.

    The block of ADM (Dhariwal and Nichol, 2021, arXiv 2105.05233), whose adaptive group normalisation is
    equation 6 there: the guide gives a scale and a shift to each channel.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        guide_width: int,
        dropout: float,
        scale_shift: bool,
        backends: Backends,
        resample: Literal["halve", "double"] | None = None,
    ) -> None:
        super().__init__()
        self.scale_shift = scale_shift
        self.resample = _RESAMPLINGS[resample]
        self.input_norm = GroupNorm(in_channels, backends)
        self.input_convolution = convolution(in_channels, out_channels)
        self.guide = nn.Linear(guide_width, 2 * out_channels if scale_shift else out_channels)
        self.output_norm = GroupNorm(out_channels, backends)
        self.dropout = Dropout(dropout)
        self.output_convolution = zeroed(convolution(out_channels, out_channels))
        self.skip = nn.Identity() if in_channels == out_channels else PointwiseConvolution(in_channels, out_channels)

    def forward(self, x: Tensor, guide: Guide) -> Tensor:
        y = self.input_convolution(self.resample(self.input_norm(x)))
        told = self.guide(guide.vector)
        if self.scale_shift:
            scale, shift = told.chunk(2, dim=1)
            y = self.output_norm(y, scale, shift)
        else:
            y = self.output_norm(y + told[:, :, None, None])
        y = self.output_convolution(self.dropout(y))
        return self.skip(self.resample(x)) + y


class SelfAttention(nn.Module):
    """Every pixel attends to every pixel."""

    def __init__(self, channels: int, heads: int, backends: Backends) -> None:
        super().__init__()
        self.heads, self.backend = heads, backends.attention
        self.norm = GroupNorm(channels, backends, activation=None)
        self.qkv = PointwiseConvolution(channels, 3 * channels)
        self.output = zeroed(PointwiseConvolution(channels, channels))

    def forward(self, x: Tensor, guide: Guide) -> Tensor:
        B, C, H, W = x.shape
        qkv = self.qkv(self.norm(x)).permute(0, 2, 3, 1).view(B, H * W, 3, self.heads, C // self.heads)
        # Views all of them; taken apart in this order their gradients are put together by one copy.
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(dim=2))
        y = attention(q, k, v, self.backend)
        return x + self.output(y.transpose(1, 2).reshape(B, H, W, C).permute(0, 3, 1, 2))


class ContextAttention(nn.Module):
    """Every pixel attends to every pixel, to the guide's tokens and to one learned null token.

    All heads share one key and value head. The layer of Imagen (Saharia et al., arXiv 2205.11487, D.3.1), as
    the paper's boxed and segmented networks have it.
    """

    def __init__(self, channels: int, heads: int, context_channels: int, backends: Backends) -> None:
        super().__init__()
        self.heads, self.backend = heads, backends.attention
        head_channels = channels // heads
        self.norm = nn.LayerNorm(channels, bias=False)
        self.query = nn.Linear(channels, channels, bias=False)
        self.key_value = nn.Linear(channels, 2 * head_channels, bias=False)
        self.null_key_value = nn.Parameter(torch.randn(2 * head_channels))
        self.context_norm = nn.LayerNorm(context_channels)
        self.context_key_value = nn.Linear(context_channels, 2 * head_channels)
        self.output = nn.Linear(channels, channels, bias=False)
        self.output_norm = nn.LayerNorm(channels, bias=False)

    def forward(self, x: Tensor, guide: Guide) -> Tensor:
        assert guide.tokens is not None, "this layer is built only where the guide has tokens"
        B, C, H, W = x.shape
        pixels = self.norm(x.permute(0, 2, 3, 1).reshape(B, H * W, C))
        q = self.query(pixels).view(B, H * W, self.heads, -1).transpose(1, 2)

        tokens = self.context_key_value(self.context_norm(guide.tokens))
        null = self.null_key_value.to(tokens.dtype).expand(B, 1, -1)
        k, v = torch.cat((tokens, null, self.key_value(pixels)), dim=1).chunk(2, dim=2)
        k, v = (shared[:, None].expand(-1, self.heads, -1, -1) for shared in (k, v))

        y = attention(q, k, v, self.backend).transpose(1, 2).reshape(B, H * W, C)
        y = self.output_norm(self.output(y))
        return x + y.view(B, H, W, C).permute(0, 3, 1, 2)
