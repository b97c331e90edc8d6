"""Randomness that does not depend on how work is divided: not on batch size, rank, or number of devices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


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
    seed: int,
    images_seen: int,
    global_batch: int,
    part: slice,
    shape: tuple[int, int, int],
    device: torch.device | str,
) -> TrainingNoise:
    """The randomness of `part` of a global batch: a function of (seed, images seen, place in the global batch).

    Every caller draws the whole global batch and keeps its part. The price is memory written for numbers thrown
    away: 50 MB for 1,024 images of 3 x 64 x 64, which a CPU core takes 0.1 s for. Numbers are drawn on the
    device and differ between kinds of devices. `shape` is (C, H, W) of one image.
    """
    generator = torch.Generator(device)
    # The hash of NumPy's SeedSequence, so that near seeds and near times give unrelated streams.
    generator.manual_seed(int(np.random.SeedSequence((seed, images_seen)).generate_state(1, np.uint64)[0]))
    level, drop = torch.rand(2, global_batch, device=device, generator=generator)
    noise = torch.randn(global_batch, *shape, device=device, generator=generator)
    flip = torch.rand(global_batch, device=device, generator=generator)
    return TrainingNoise(noise[part].contiguous(memory_format=torch.channels_last), level[part], drop[part], flip[part])
