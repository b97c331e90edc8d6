"""Randomness that does not depend on how work is divided: not on batch size, rank, or number of devices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kernels import noise as noise_kernels


class NoiseSource:
    """The noise of sampled images: a draw of an image is a function of (seed, image number, draw number) alone.

    Philox is a cipher of a counter: seed and image number are its key, the draw number is part of its counter, so
    that no two of them share a stream. Added up they would; and the generator of PyTorch on a CPU keeps 32 bits of
    a seed, so that among 50,000 images two would have the same noise with a chance of 25 %.
    """

    def __init__(
        self, seed: int, image_numbers: Sequence[int], shape: tuple[int, int, int], device: torch.device | str
    ) -> None:
        """`shape` (C, H, W) of one image; `seed` and image numbers in 0 .. 2^64-1, else ValueError."""
        for number in (seed, *image_numbers):
            if not 0 <= number < 2**64:
                raise ValueError(f"{number} is outside 0 .. 2^64-1, the range of seeds and image numbers")
        self._keys = [np.array((seed, number), dtype=np.uint64) for number in image_numbers]
        self._shape = shape
        self._device = torch.device(device)
        self._draws = 0

    def draw(self) -> Tensor:
        """Standard normal float32 [B, C, H, W] on the device, channels_last; another at each call.

        Made by one core of the CPU, at about 70 million numbers a second (3 x 64 x 64: 0.18 ms an image), and
        copied from pinned memory, so that the host does not wait for the device.
        """
        noise = torch.empty(len(self._keys), *self._shape, pin_memory=self._device.type == "cuda")
        for key, image in zip(self._keys, noise.numpy(), strict=True):
            stream = np.random.Philox(key=key, counter=(0, 0, 0, self._draws))
            np.random.Generator(stream).standard_normal(dtype=np.float32, out=image)
        self._draws += 1
        return noise.to(self._device, non_blocking=True).contiguous(memory_format=torch.channels_last)


class TrainingNoise(NamedTuple):
    noise: Tensor
    """Standard normal float32 [B, C, H, W], channels_last."""

    level: Tensor
    """Uniform float32 [B] in [0, 1): draws the noise level, see Objective.loss."""

    drop: Tensor
    """Uniform float32 [B] in [0, 1): the condition is dropped where it is below the drop rate."""

    flip: Tensor
    """Uniform float32 [B] in [0, 1): image and condition are mirrored where it is below the rate of that."""


def training_noise(
    seed: int, first_image: int, count: int, shape: tuple[int, int, int], device: torch.device | str
) -> TrainingNoise:
    """The randomness of the images first_image .. first_image + count - 1 of a run.

    An image of a run is numbered by the images seen before its batch plus its place in the global batch, and what it
    gets is a function of (seed, number, place in the image) alone, see kernels/noise.py: whoever trains on it draws
    the same, and nobody draws more than their own. Levels, drops and flips are the same on every kind of device, and
    noise is to float32 rounding. `shape` is (C, H, W) of one image.
    ValueError for a seed outside 0 .. 2^64-1 and for images outside 0 .. 2^63-1.
    """
    if not 0 <= first_image <= first_image + count <= 2**63 - 1:
        raise ValueError(f"images {first_image} .. {first_image} + {count} of a run: they are numbered 0 .. 2^63-1")
    noise, uniform = noise_kernels.noise(seed, torch.arange(first_image, first_image + count, device=device), shape)
    level, drop, flip, _ = uniform
    return TrainingNoise(noise, level, drop, flip)
