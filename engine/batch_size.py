"""How many images a forward pass draws fastest."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
import torch.distributed

from engine.distributed import Ranks

SMALLEST, LARGEST = 8, 2048
GAIN = 1.05
"""Twice the batch must draw an image so many times as fast to be worth its memory."""
SHARE_OF_MEMORY = 0.6
"""Of a device: a batch that takes more is not doubled."""


def find_batch_size(step: Callable[[int], object], images: int, ranks: Ranks) -> int:
    """The batch size at which `step(batch size)` works on most images a second, found by doubling.

    `step` is tried uncompiled, so that no size is compiled in vain; a compiled one needs less memory, and gains less
    from a larger batch. No more than the `images` of a process, rounded up. All processes call it alike and come to the
    same. ValueError where not even the smallest fits.
    """
    size, best, found = SMALLEST, 0.0, 0
    while True:
        try:
            speed = size / _seconds(lambda size=size: step(size), ranks.device)  # type: ignore[misc]
        except torch.OutOfMemoryError:
            break
        finally:
            if ranks.device.type == "cuda":
                torch.cuda.empty_cache()
        if speed < GAIN * best:
            break
        best, found = speed, size
        if size >= min(images, LARGEST) or _too_large(ranks.device):
            break
        size *= 2
    least = torch.tensor(found, device=ranks.device)
    if ranks.world_size > 1:
        torch.distributed.all_reduce(least, torch.distributed.ReduceOp.MIN)
    if not int(least):
        raise ValueError(f"{SMALLEST} images at a time do not fit into the memory of {ranks.device}: free some")
    # As many batches of equal size, so that the last one is not drawn for a few images alone.
    batches = math.ceil(images / int(least))
    return math.ceil(images / batches / SMALLEST) * SMALLEST


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Of a second call, which has no first-time costs; the best of two."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def _too_large(device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    return (
        torch.cuda.max_memory_allocated(device)
        > SHARE_OF_MEMORY * torch.cuda.get_device_properties(device).total_memory
    )
