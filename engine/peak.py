"""How fast a network could train at most: the operations it needs, and the rate at which the device multiplies."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sgdm.conditions import Condition
from sgdm.models.config import UNetConfig
from sgdm.models.unet import UNet

Arithmetic = Literal["fp32", "tf32", "bf16"]

MATRIX_SIZE = {"cpu": 1536, "cuda": 8192}
REPEATS = 10
LONGEST = 0.5
"""Seconds after which a slow processor has been measured often enough."""


def training_flops(config: UNetConfig) -> int:
    """Operations of the forward and the backward pass of one image, a multiplication and an addition counted as two.

    Those of matrix products and convolutions in the forward pass, as torch counts them, times three: the backward
    pass has twice as many. Recomputed ones are not counted again."""
    return 3 * forward_flops(config)


def forward_flops(config: UNetConfig) -> int:
    """Of one image."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        UNet(config)(*one_image(config))
    return counter.get_total_flops()


def one_image(config: UNetConfig) -> tuple[Tensor, Tensor, Condition | None]:
    """Arguments of a network, all zeros, for a batch of one."""
    side = config.image_size
    condition = Condition(
        cluster=torch.zeros(1, dtype=torch.long) if config.num_clusters else None,
        attributes=torch.zeros(1, config.num_attributes) if config.num_attributes else None,
        mask=torch.zeros(1, config.mask_channels, side, side) if config.mask_channels else None,
    )
    return torch.zeros(1, config.in_channels, side, side), torch.zeros(1), condition if config.has_condition else None


def peak_images_per_second(config: UNetConfig, device: torch.device, bf16: bool) -> float:
    """Training images a second of one device that did nothing but the network's operations, at the measured rate of a
    large matrix product: what model FLOPs utilisation is a share of. A warm-up and a fraction of a second of work;
    on a GPU 0.4 GB (fp32: 0.8) for as long as it lasts.

    bf16: what training computes in; else fp32, as torch.backends.cuda.matmul.allow_tf32 says on a GPU. Processes that
    share a processor measure their share of it, if they measure at the same time."""
    tf32 = device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32
    return matmul_rate(device, "bf16" if bf16 else "tf32" if tf32 else "fp32") / training_flops(config)


def matmul_rate(device: torch.device, arithmetic: Arithmetic) -> float:
    """Operations a second in a large matrix product. Of several repetitions the fastest counts."""
    size = MATRIX_SIZE[device.type]
    dtype = torch.bfloat16 if arithmetic == "bf16" else torch.float32
    # Random numbers: a GPU multiplies zeros faster, since they draw less power.
    left, right = torch.randn(2, size, size, device=device, dtype=dtype)
    product = torch.empty_like(left)

    def multiply() -> Tensor:
        return torch.mm(left, right, out=product)

    with _tf32(arithmetic == "tf32"):
        seconds = _shortest_on_cuda(multiply, device) if device.type == "cuda" else _shortest_on_cpu(multiply)
    return 2 * size**3 / seconds


def _shortest_on_cpu(step: Callable[[], object]) -> float:
    step()
    start, seconds = time.perf_counter(), float("inf")
    for _ in range(REPEATS):
        begun = time.perf_counter()
        step()
        ended = time.perf_counter()
        seconds = min(seconds, ended - begun)
        if ended - start > LONGEST:
            break
    return seconds


def _shortest_on_cuda(step: Callable[[], object], device: torch.device) -> float:
    """One after the other, so that launching is hidden behind the step before."""
    with torch.cuda.device(device):
        step()
        events = [torch.cuda.Event(enable_timing=True) for _ in range(REPEATS + 1)]
        for event in events[:-1]:
            event.record()
            step()
        events[-1].record()
        events[-1].synchronize()
    return min(start.elapsed_time(end) for start, end in itertools.pairwise(events)) / 1e3


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
