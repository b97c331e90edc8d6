"""Processes and devices of a run, whichever launcher started it."""

from __future__ import annotations

import functools
import os
import socket
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed

# Said here, DeepSpeed neither searches for an accelerator nor warns that it found none.
os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")

import deepspeed


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process speaks and writes for all."""
        return self.rank == 0

    def wait(self) -> None:
        """Until every process is here, however long one of them takes for work that only it does."""
        if self.world_size > 1:
            torch.distributed.barrier(group=_patient_group())


def alone(device: torch.device) -> Ranks:
    """One process without others."""
    return Ranks(0, 1, device)


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def fast_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 matrices faster than fp32 ones."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and "AVX512_BF16" in cpu_features()


def computes_in_bf16(precision: str, device: torch.device) -> bool:
    """What training.precision means on a device."""
    return precision == "bf16" or (precision == "auto" and fast_bf16(device))


def cpu_features() -> set[str]:
    """Instruction sets of the processor that matter here, by the names /proc/cpuinfo gives them, in capitals."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            flags = next((line for line in file if line.startswith("flags")), "")
    except OSError:
        return set()
    return {flag.upper() for flag in flags.split() if flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16")}


def join() -> Ranks:
    """The processes of a launcher, or this one alone, which then needs no group."""
    return initialize() if "RANK" in os.environ else alone(default_device())


def initialize() -> Ranks:
    """Joins the process group that the launcher describes in the environment, or a group of this process alone."""
    if "RANK" not in os.environ:
        os.environ.update(
            RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(_free_port())
        )
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if torch.cuda.is_available():
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
        processes = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ["WORLD_SIZE"])
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // processes))
    # Its shared-memory all-reduce for CPUs would be compiled first, for a minute; killed meanwhile, it leaves a lock
    # that every later run waits for without end. Gloo does the same work.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="nccl" if device.type == "cuda" else "gloo", verbose=False)
    return Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size(), device)


@functools.cache
def _patient_group() -> torch.distributed.ProcessGroup:
    """The default group gives up on a process after minutes; clustering for all takes hours."""
    return torch.distributed.new_group(backend="gloo", timeout=timedelta(days=30))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
