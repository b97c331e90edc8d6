"""Triton kernels of group_norm, for channels_last memory.

A program owns some whole groups of one image. What it needs of x comes from device memory once: a small feature map
stays in registers between the statistics and the result, and a large one is read a second time while it is still in
the L2 cache. No two programs write to one place, so two runs agree bit for bit.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

INTERPRETED = triton.knobs.runtime.interpret
"""TRITON_INTERPRET=1: the kernels run on CPU tensors, slowly, to be tested without a GPU."""

_SECTOR_BYTES = 32  # the least that device memory gives: a pixel's channels of one program should fill it
_VECTOR_BYTES = 16  # the widest load of a thread
_VALUES_IN_REGISTERS = 16_384  # a map of at most so many values is held by its program
_VALUES_PER_STEP = 8_192  # of a larger map
# More threads and so fewer programs at once on a multiprocessor in the backward pass: what they read twice is to stay
# in the L2 cache, and it is twice as much.
VALUES_PER_THREAD_FORWARD = 32
VALUES_PER_THREAD_BACKWARD = 16
_MOST_CHANNELS = 128  # of several groups: their sums compare every channel with every other


class Tile(NamedTuple):
    """How a program walks over its part of an image."""

    program_channels: int
    """Channels that a program owns: whole groups, or fewer in the last program of an image."""

    channels: int
    """The same as a power of two."""

    pixels: int
    """Pixels of a step, a power of two."""

    in_registers: bool
    """One step sees the whole map."""

    def num_warps(self, values_per_thread: int) -> int:
        return min(16, max(4, self.channels * self.pixels // (32 * values_per_thread)))


def choose_tile(C: int, group_channels: int, pixels: int, itemsize: int) -> Tile:
    """The tile for a map of `pixels` pixels, C channels in groups of `group_channels`, of `itemsize` bytes a value."""
    groups = C // group_channels
    # Whole vectors and sectors, as far as the groups allow.
    aligned = _VECTOR_BYTES // math.gcd(_VECTOR_BYTES, group_channels * itemsize)
    program_groups = aligned * math.ceil(_SECTOR_BYTES / (aligned * group_channels * itemsize))
    whole_map = triton.next_power_of_2(pixels)

    def channels_of(program_groups: int) -> int:
        return triton.next_power_of_2(program_groups * group_channels)

    # Small maps take more channels, for longer reads and fewer programs.
    while 2 * program_groups <= groups and channels_of(2 * program_groups) <= min(
        _MOST_CHANNELS, _VALUES_PER_STEP // whole_map
    ):
        program_groups *= 2
    program_groups = min(program_groups, groups)
    channels = channels_of(program_groups)
    in_registers = whole_map * channels <= _VALUES_IN_REGISTERS
    step = whole_map if in_registers else max(1, _VALUES_PER_STEP // channels)
    return Tile(program_groups * group_channels, channels, step, in_registers)


@triton.jit
def _own_channels(C: tl.constexpr, program_channels: tl.constexpr, tile_channels: tl.constexpr):
    """The image of this program, its channels, and which lanes of the tile hold one: a constant, and so no work, where
    all do."""
    programs: tl.constexpr = (C + program_channels - 1) // program_channels
    image = (tl.program_id(0) // programs).to(tl.int64)
    lane = tl.arange(0, tile_channels)
    channel = tl.program_id(0) % programs * program_channels + lane
    if program_channels == tile_channels and C % program_channels == 0:
        mask = tl.full([tile_channels], True, tl.int1)
    else:
        mask = (lane < program_channels) & (channel < C)
    return image, channel, mask


@triton.jit
def _pixels_inside(pixel, pixels: tl.constexpr, tile_pixels: tl.constexpr):
    """Which rows hold a pixel of the map; a constant likewise."""
    if pixels % tile_pixels == 0:
        return tl.full([tile_pixels], True, tl.int1)
    return pixel < pixels


@triton.jit
def _sum_of_group(values, channel, group_channels: tl.constexpr, one_group: tl.constexpr):
    """For every channel [channels] of the tile, the sum over the channels of its group."""
    if one_group:
        return tl.zeros_like(values) + tl.sum(values, axis=0)
    # Any number of channels a group, with loads that follow memory and not the groups.
    group = channel // group_channels
    together = group[:, None] == group[None, :]
    return tl.sum(tl.where(together, values[None, :], 0.0), axis=1)


@triton.jit
def _affine(weight, bias, scale, shift, image, channel, mask, scale_stride, shift_stride, has_scale: tl.constexpr):
    """What follows the normalisation: normalised * gain + offset."""
    gain = tl.load(weight + channel, mask=mask, other=0.0).to(tl.float32)
    offset = tl.load(bias + channel, mask=mask, other=0.0).to(tl.float32)
    if has_scale:
        factor = 1.0 + tl.load(scale + image * scale_stride + channel, mask=mask, other=0.0).to(tl.float32)
        gain = gain * factor
        offset = offset * factor + tl.load(shift + image * shift_stride + channel, mask=mask, other=0.0).to(tl.float32)
    return gain, offset


if INTERPRETED:

    @triton.jit
    def _sigmoid(z):
        return tl.sigmoid(z)

else:

    @triton.jit
    def _sigmoid(z):
        # tl.sigmoid in 6 instructions fewer a value, of 46 that the backward pass on an H200 can spend in the time that
        # its values take from memory. It differs where the denominator passes 2^126, and there both are nothing.
        return libdevice.fast_dividef(1.0, 1.0 + libdevice.fast_expf(-z))


@triton.jit
def _silu_gradient(z):
    """d silu(z) / dz."""
    sigmoid = _sigmoid(z)
    return sigmoid * (1.0 + z * (1.0 - sigmoid))


@triton.jit
def forward_kernel(
    x,
    weight,
    bias,
    scale,
    shift,
    y,
    mean,
    rstd,
    eps,
    scale_stride,
    shift_stride,
    C: tl.constexpr,
    pixels: tl.constexpr,
    group_channels: tl.constexpr,
    program_channels: tl.constexpr,
    tile_channels: tl.constexpr,
    tile_pixels: tl.constexpr,
    in_registers: tl.constexpr,
    has_scale: tl.constexpr,
    silu: tl.constexpr,
):
    image, channel, channel_mask = _own_channels(C, program_channels, tile_channels)
    one_group: tl.constexpr = program_channels == group_channels
    row = tl.arange(0, tile_pixels)
    offsets = row[:, None] * C + channel[None, :]
    x += image * pixels * C
    y += image * pixels * C
    values_per_group: tl.constexpr = pixels * group_channels

    # In either branch the variance is a mean of squared distances from the mean: E[x^2] - E[x]^2 cancels. The mean
    # distance, which rounding leaves, corrects both (Chan, Golub and LeVeque 1983, the corrected two-pass algorithm).
    if in_registers:
        mask = _pixels_inside(row, pixels, tile_pixels)[:, None] & channel_mask[None, :]
        value = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32)
        average = _sum_of_group(tl.sum(value, axis=0), channel, group_channels, one_group) / values_per_group
        distance = tl.where(mask, value - average[None, :], 0.0)
        rest = _sum_of_group(tl.sum(distance, axis=0), channel, group_channels, one_group) / values_per_group
        squares = _sum_of_group(tl.sum(distance * distance, axis=0), channel, group_channels, one_group)
        average += rest
        squares -= values_per_group * rest * rest
    else:
        # Welford's recurrence in every lane of the tile, then Chan's formula over lanes and channels.
        lane_mean = tl.zeros([tile_pixels, tile_channels], tl.float32)
        lane_squares = tl.zeros([tile_pixels, tile_channels], tl.float32)
        count = 0.0
        for start in range(0, pixels, tile_pixels):
            mask = _pixels_inside(start + row, pixels, tile_pixels)[:, None] & channel_mask[None, :]
            value = tl.load(x + start * C + offsets, mask=mask, other=0.0).to(tl.float32)
            count += 1.0
            distance = tl.where(mask, value - lane_mean, 0.0)
            lane_mean += distance * (1.0 / count)
            lane_squares += distance * (value - lane_mean)
        seen = ((pixels - row + tile_pixels - 1) // tile_pixels).to(tl.float32)[:, None]
        channel_mean = tl.sum(seen * lane_mean, axis=0) / pixels
        distance = lane_mean - channel_mean[None, :]
        rest = tl.sum(seen * distance, axis=0) / pixels
        channel_mean += rest
        channel_squares = tl.sum(lane_squares + seen * distance * distance, axis=0) - pixels * rest * rest
        average = _sum_of_group(channel_mean, channel, group_channels, one_group) / group_channels
        distance_of_channel = tl.where(channel_mask, channel_mean - average, 0.0)
        squares = _sum_of_group(
            channel_squares + pixels * distance_of_channel * distance_of_channel, channel, group_channels, one_group
        )
    inverse = 1.0 / tl.sqrt_rn(squares / values_per_group + eps)

    group = image * (C // group_channels) + channel // group_channels
    first_of_group = channel_mask & (channel % group_channels == 0)
    tl.store(mean + group, average, mask=first_of_group)
    tl.store(rstd + group, inverse, mask=first_of_group)

    gain, offset = _affine(
        weight, bias, scale, shift, image, channel, channel_mask, scale_stride, shift_stride, has_scale
    )
    gain *= inverse
    if in_registers:
        z = (value - average[None, :]) * gain[None, :] + offset[None, :]
        if silu:
            z *= _sigmoid(z)
        tl.store(y + offsets, z.to(y.dtype.element_ty), mask=mask)
    else:
        for start in range(0, pixels, tile_pixels):
            mask = _pixels_inside(start + row, pixels, tile_pixels)[:, None] & channel_mask[None, :]
            value = tl.load(x + start * C + offsets, mask=mask, other=0.0).to(tl.float32)
            z = (value - average[None, :]) * gain[None, :] + offset[None, :]
            if silu:
                z *= _sigmoid(z)
            tl.store(y + start * C + offsets, z.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _normalised_and_gradient(x, dy, mask, average, inverse, gain, offset, silu: tl.constexpr):
    """The normalised values and the gradient by what the activation is given, both [pixels, channels] float32."""
    normalised = (tl.load(x, mask=mask, other=0.0).to(tl.float32) - average[None, :]) * inverse[None, :]
    gradient = tl.load(dy, mask=mask, other=0.0).to(tl.float32)
    if silu:
        gradient *= _silu_gradient(normalised * gain[None, :] + offset[None, :])
    return normalised, gradient


@triton.jit
def _input_gradient(normalised, gradient, gain, gradient_mean, product_mean, inverse):
    """With g = gain * gradient: (g - E[g] - normalised * E[g * normalised]) / sigma, E over the group."""
    g = gradient * gain[None, :]
    return (g - gradient_mean[None, :] - normalised * product_mean[None, :]) * inverse[None, :]


@triton.jit
def backward_kernel(
    dy,
    x,
    weight,
    bias,
    scale,
    shift,
    mean,
    rstd,
    dx,
    gradient_sum,
    product_sum,
    scale_stride,
    shift_stride,
    C: tl.constexpr,
    pixels: tl.constexpr,
    group_channels: tl.constexpr,
    program_channels: tl.constexpr,
    tile_channels: tl.constexpr,
    tile_pixels: tl.constexpr,
    in_registers: tl.constexpr,
    has_scale: tl.constexpr,
    silu: tl.constexpr,
):
    image, channel, channel_mask = _own_channels(C, program_channels, tile_channels)
    one_group: tl.constexpr = program_channels == group_channels
    row = tl.arange(0, tile_pixels)
    offsets = row[:, None] * C + channel[None, :]
    x += image * pixels * C
    dy += image * pixels * C
    dx += image * pixels * C
    values_per_group: tl.constexpr = pixels * group_channels

    group = image * (C // group_channels) + channel // group_channels
    average = tl.load(mean + group, mask=channel_mask, other=0.0)
    inverse = tl.load(rstd + group, mask=channel_mask, other=0.0)
    gain, offset = _affine(
        weight, bias, scale, shift, image, channel, channel_mask, scale_stride, shift_stride, has_scale
    )

    # Per channel of the image, sums over pixels of the gradient and of its product with the normalised values:
    # all other gradients follow from these two.
    if in_registers:
        mask = _pixels_inside(row, pixels, tile_pixels)[:, None] & channel_mask[None, :]
        normalised, gradient = _normalised_and_gradient(
            x + offsets, dy + offsets, mask, average, inverse, gain, offset, silu
        )
        gradients = tl.sum(gradient, axis=0)
        products = tl.sum(gradient * normalised, axis=0)
    else:
        lane_gradients = tl.zeros([tile_pixels, tile_channels], tl.float32)
        lane_products = tl.zeros([tile_pixels, tile_channels], tl.float32)
        for start in range(0, pixels, tile_pixels):
            mask = _pixels_inside(start + row, pixels, tile_pixels)[:, None] & channel_mask[None, :]
            here = start * C + offsets
            normalised, gradient = _normalised_and_gradient(
                x + here, dy + here, mask, average, inverse, gain, offset, silu
            )
            lane_gradients += gradient
            lane_products += gradient * normalised
        gradients = tl.sum(lane_gradients, axis=0)
        products = tl.sum(lane_products, axis=0)
    tl.store(gradient_sum + image * C + channel, gradients, mask=channel_mask)
    tl.store(product_sum + image * C + channel, products, mask=channel_mask)

    gradient_mean = _sum_of_group(gain * gradients, channel, group_channels, one_group) / values_per_group
    product_mean = _sum_of_group(gain * products, channel, group_channels, one_group) / values_per_group
    if in_registers:
        result = _input_gradient(normalised, gradient, gain, gradient_mean, product_mean, inverse)
        tl.store(dx + offsets, result.to(dx.dtype.element_ty), mask=mask)
    else:
        for start in range(0, pixels, tile_pixels):
            mask = _pixels_inside(start + row, pixels, tile_pixels)[:, None] & channel_mask[None, :]
            here = start * C + offsets
            normalised, gradient = _normalised_and_gradient(
                x + here, dy + here, mask, average, inverse, gain, offset, silu
            )
            result = _input_gradient(normalised, gradient, gain, gradient_mean, product_mean, inverse)
            tl.store(dx + here, result.to(dx.dtype.element_ty), mask=mask)


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    num_groups: int,
    eps: float,
    scale: Tensor | None,
    shift: Tensor | None,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y like x, mean and reciprocal standard deviation float32 [B, groups]."""
    B, C, H, W = x.shape
    y = torch.empty_like(x, memory_format=torch.channels_last)
    mean, rstd = (torch.empty(B, num_groups, device=x.device, dtype=torch.float32) for _ in range(2))
    tile = choose_tile(C, C // num_groups, H * W, x.itemsize)
    forward_kernel[(B * math.ceil(C / tile.program_channels),)](
        x,
        weight,
        bias,
        scale,
        shift,
        y,
        mean,
        rstd,
        eps,
        0 if scale is None else scale.stride(0),
        0 if shift is None else shift.stride(0),
        *_constants(x, num_groups, tile, scale, silu),
        num_warps=tile.num_warps(VALUES_PER_THREAD_FORWARD),
    )
    return y, mean, rstd


def backward(
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
    """dx like x; per image and channel, float32 [B, C], the sums over pixels of the gradient by what the activation is
    given, and of its product with the normalised values."""
    B, C, H, W = x.shape
    dx = torch.empty_like(x, memory_format=torch.channels_last)
    gradient_sum, product_sum = (torch.empty(B, C, device=x.device, dtype=torch.float32) for _ in range(2))
    tile = choose_tile(C, C // num_groups, H * W, x.itemsize)
    backward_kernel[(B * math.ceil(C / tile.program_channels),)](
        dy,
        x,
        weight,
        bias,
        scale,
        shift,
        mean,
        rstd,
        dx,
        gradient_sum,
        product_sum,
        0 if scale is None else scale.stride(0),
        0 if shift is None else shift.stride(0),
        *_constants(x, num_groups, tile, scale, silu),
        num_warps=tile.num_warps(VALUES_PER_THREAD_BACKWARD),
    )
    return dx, gradient_sum, product_sum


def _constants(x: Tensor, num_groups: int, tile: Tile, scale: Tensor | None, silu: bool) -> tuple[int | bool, ...]:
    _, C, H, W = x.shape
    return (
        C,
        H * W,
        C // num_groups,
        tile.program_channels,
        tile.channels,
        tile.pixels,
        tile.in_registers,
        scale is not None,
        silu,
    )
