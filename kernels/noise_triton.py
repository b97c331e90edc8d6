"""Triton kernel of noise: Philox4x32-10 and Box and Muller's transform, written once, in whole vectors.

A thread takes four counters that follow each other: each of their four words gives a vector, in a quarter of the image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

INTERPRETED = triton.knobs.runtime.interpret
"""TRITON_INTERPRET=1: the kernel runs on CPU tensors, slowly, to be tested without a GPU."""

TILE = 256  # counters of a program
WARPS = TILE // (4 * 32)


if INTERPRETED:

    @triton.jit
    def _cosine_and_sine(half_turns):
        return tl.cos(half_turns * math.pi), tl.sin(half_turns * math.pi)

else:

    @triton.jit
    def _cosine_and_sine(half_turns):
        # tl.cos is ready for any angle, and keeps a table for the large ones in memory.
        return libdevice.cospi(half_turns), libdevice.sinpi(half_turns)


@triton.jit
def _normals(radius, angle):
    """Two standard normals of two words, as in kernels/reference.py."""
    radius = tl.sqrt_rn(-2.0 * tl.log(radius.to(tl.float32) * 2**-32 + 2**-33))
    half_turns = (angle ^ 0x80000000).to(tl.int32, bitcast=True).to(tl.float32) * 2**-31
    cosine, sine = _cosine_and_sine(half_turns)
    return radius * cosine, radius * sine


@triton.jit
def _uniform(word):
    return (word >> 8).to(tl.float32) * 2**-24


@triton.jit(do_not_specialize=["seed", "B"])
def noise_kernel(positions, normal, uniform, seed, B, values: tl.constexpr, tile: tl.constexpr):
    """`normal` [B, values], `uniform` [4, B]."""
    blocks: tl.constexpr = (values + 3) // 4
    programs: tl.constexpr = (blocks + tile - 1) // tile
    image = (tl.program_id(0) // programs).to(tl.int64)
    program = tl.program_id(0) % programs
    position = tl.load(positions + image)
    low, high = position.to(tl.uint32), (position >> 32).to(tl.uint32)

    block = program * tile + tl.arange(0, tile)
    words = tl.philox(seed, low, high, block, 0)
    quarters = _normals(words[0], words[1]) + _normals(words[2], words[3])
    for i in tl.static_range(4):
        place = i * blocks + block
        tl.store(normal + image * values + place, quarters[i], mask=(block < blocks) & (place < values))

    if program == 0:
        other_words = tl.philox(seed, low, high, 0, 1)
        for i in tl.static_range(4):
            tl.store(uniform + i * B + image, _uniform(other_words[i]))


def noise(seed: int, positions: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """As kernels.noise.noise; `seed` as a signed integer of the same 64 bits."""
    normal, uniform = empty(positions, shape)
    B, values = len(positions), math.prod(shape)
    if normal.numel():
        programs = math.ceil(math.ceil(values / 4) / TILE)
        noise_kernel[(B * programs,)](positions, normal, uniform, seed, B, values, TILE, num_warps=WARPS)
    return normal, uniform


def empty(positions: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Memory for the result."""
    B, device = positions.shape[0], positions.device
    normal = torch.empty((B, *shape), device=device, dtype=torch.float32, memory_format=torch.channels_last)
    return normal, torch.empty((4, B), device=device, dtype=torch.float32)
