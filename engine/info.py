"""`sgdm info`: versions, devices, which kernels and attention backends are usable, and why the others are not."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import torch
from rich.table import Table

from engine import distributed
from engine.telemetry import console
from kernels.attention import attention_backends
from kernels.group_norm import refusal as group_norm_refusal
from kernels.noise import refusal as noise_refusal

PACKAGES = (
    "sgdm",
    "torch",
    "torchvision",
    "triton",
    "xformers",
    "deepspeed",
    "ffcv",
    "faiss-cpu",
    "faiss-gpu",
    "timm",
    "clean-fid",
    "numpy",
    "numba",
)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages a result depends on; packages that are absent are left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def devices() -> list[str]:
    if not torch.cuda.is_available():
        features = ", ".join(sorted(distributed.cpu_features())) or "none of avx2, avx512, amx"
        return [f"CPU, {torch.get_num_threads()} threads, {features}"]
    properties = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [f"{p.name}, {p.total_memory / 1e9:.0f} GB, sm_{p.major}{p.minor}" for p in properties]


def main() -> None:
    device = distributed.default_device()
    table = Table(show_header=False, box=None, pad_edge=False)
    for package, number in versions().items():
        table.add_row(package, number)
    for name in devices():
        table.add_row("device", name)
    table.add_row(
        "compute precision", "bf16" if distributed.fast_bf16(device) else "fp32 (no fast bf16 on this device)"
    )
    for name, reason in attention_backends(device).items():
        table.add_row(f"attention: {name}", "usable" if reason is None else f"not usable: {reason}")
    for name, reason in kernel_reasons(device).items():
        table.add_row(f"kernel: {name}", reason)
    console.print(table)


def kernel_reasons(device: torch.device) -> dict[str, str]:
    """What computes each operation of kernels/ on this device."""
    reason = group_norm_refusal("triton", device)
    noise_reason = noise_refusal("triton", device)
    return {
        "group_norm": "Triton" if reason is None else f"PyTorch, fused by torch.compile (the Triton kernel {reason})",
        "noise": "Triton" if noise_reason is None else f"PyTorch (the Triton kernel {noise_reason})",
        "ema_update": f"PyTorch foreach on {device.type}",
    }
