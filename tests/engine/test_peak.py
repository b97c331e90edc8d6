from __future__ import annotations

import dataclasses
import time

import pytest
import torch

from engine import peak
from engine.peak import matmul_rate, peak_images_per_second, training_flops
from engine.recipes import imagenet64
from sgdm.models.config import UNetConfig

CPU = torch.device("cpu")
SMALL = UNetConfig(
    image_size=16, channels=16, channel_multipliers=(1,), residual_blocks=1, attention_downsamples=(), heads=2
)


def test_operations_of_the_network_of_the_paper() -> None:
    assert training_flops(imagenet64().network) / 3e9 == pytest.approx(79.27, abs=0.005)


def test_a_mask_costs_its_channels_of_the_first_convolution() -> None:
    guided = dataclasses.replace(SMALL, mask_channels=5, num_attributes=5)
    first_convolution = 3 * 2 * 5 * 9 * 16 * 16 * 16
    assert training_flops(guided) - training_flops(SMALL) >= first_convolution > 0


def test_the_rate_is_that_of_a_product_and_quickly_found() -> None:
    start = time.perf_counter()
    rate = matmul_rate(CPU, "fp32")
    assert time.perf_counter() - start < 10  # some 0.5 s on a quiet machine
    left, right = torch.randn(2, 512, 512)
    times = []
    for _ in range(20):
        begun = time.perf_counter()
        left @ right
        times.append(time.perf_counter() - begun)
    assert 0.1 < rate * min(times) / (2 * 512**3) < 10


def test_images_a_second_are_rate_over_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak, "matmul_rate", lambda device, arithmetic: {"fp32": 3e9, "bf16": 6e9}[arithmetic])
    assert peak_images_per_second(SMALL, CPU, bf16=False) == 3e9 / training_flops(SMALL)
    assert peak_images_per_second(SMALL, CPU, bf16=True) == 6e9 / training_flops(SMALL)


@pytest.mark.gpu
def test_tf32_is_faster_than_fp32_and_is_switched_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak, "MATRIX_SIZE", {"cuda": 4096})
    device = torch.device("cuda")
    before = torch.backends.cuda.matmul.allow_tf32
    assert matmul_rate(device, "tf32") > 1.5 * matmul_rate(device, "fp32")
    assert matmul_rate(device, "bf16") > matmul_rate(device, "tf32")
    assert torch.backends.cuda.matmul.allow_tf32 is before
