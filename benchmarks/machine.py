"""Where and with what a figure was measured: machine, versions, commit."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import psutil
import torch

from engine.distributed import cpu_features
from engine.info import versions

ROOT = Path(__file__).resolve().parent.parent


def describe(device: torch.device) -> dict[str, Any]:
    """Machine, versions and commit, as the JSON holds them."""
    return {"machine": _machine(device), "versions": versions() | _cuda_versions(), "commit": _commit()}


def _machine(device: torch.device) -> dict[str, Any]:
    machine = {
        "cpu": _cpu_name(),
        "cpu_features": sorted(cpu_features()),
        "cores": psutil.cpu_count(logical=False),
        "logical_cores": psutil.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)),
        "torch_threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        # Near 0 on an idle machine: how busy others kept it in the minute before.
        "load_average": round(os.getloadavg()[0], 2),
    }
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        machine["gpu"] = gpu.name
        machine["gpu_memory_bytes"] = gpu.total_memory
        machine["gpu_capability"] = f"sm_{gpu.major}{gpu.minor}"
    return machine


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def _cuda_versions() -> dict[str, str]:
    if not torch.cuda.is_available():
        return {}
    return {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}


def _commit() -> dict[str, Any]:
    """The checkout's commit, and whether files differ from it; None where there is no checkout or no git."""
    revision, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain")
    return {"revision": revision, "dirty": None if changes is None else changes != ""}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
