"""Processes and devices of a run, whichever launcher started it."""

from __future__ import annotations

import functools
import ipaddress
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import psutil
import torch
import torch.distributed
from torch import Tensor

from engine import launcher
from engine.telemetry import say

# Said here, DeepSpeed neither searches for an accelerator nor warns that it found none.
os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")

import deepspeed

PATIENCE = timedelta(minutes=30)
"""For how long a collective waits for a process that lives: it may compile, or write a checkpoint, longer than others.

One that died is found at once by engine/agreement.py, in training, or by the launcher."""


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
    return alone(default_device()) if launcher.placement(os.environ) is None else initialize()


def initialize() -> Ranks:
    """Joins the process group that the launcher describes in the environment, or a group of this process alone.

    Raises LauncherError where the environment describes only half of it.
    """
    placement = launcher.placement(os.environ)
    if placement is None:
        placement = launcher.Placement(0, 0, 1, 1, "127.0.0.1", _free_port())
    os.environ.update(placement.variables())
    device = _device_of(placement)
    # Its shared-memory all-reduce for CPUs would be compiled first, for a minute; killed meanwhile, it leaves a lock
    # that every later run waits for without end. Gloo does the same work.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    with _announced(placement):
        _choose_interface(placement)
        deepspeed.init_distributed(
            dist_backend="nccl" if device.type == "cuda" else "gloo", verbose=False, timeout=PATIENCE
        )
    return Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size(), device)


def restarts(ranks: Ranks) -> int:
    """How many times torchrun or SLURM has started this run again. All processes call it.

    Each torchrun counts only what failed on its own host (pytorch/pytorch#108158): the largest count is everybody's.
    """
    told = [int(os.environ.get(name, "0")) for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")]
    count = torch.tensor(sum(told), device=ranks.device)
    if ranks.world_size > 1:
        torch.distributed.all_reduce(count, torch.distributed.ReduceOp.MAX)
    return int(count)


def gather(part: Tensor, ranks: Ranks) -> Tensor:
    """The parts [n, ...] of all processes, interleaved, on the CPU: row i of process r is row i * world_size + r."""
    if ranks.world_size == 1:
        return part
    parts = [torch.empty_like(part, device=ranks.device) for _ in range(ranks.world_size)]
    torch.distributed.all_gather(parts, part.to(ranks.device))
    return torch.stack(parts, dim=1).flatten(0, 1).cpu()


def _device_of(placement: launcher.Placement) -> torch.device:
    if not torch.cuda.is_available():
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // placement.local_world_size))
        return torch.device("cpu")
    devices = torch.cuda.device_count()
    # srun --gpus-per-task shows every process its own GPU alone.
    index = 0 if devices == 1 and "SLURM_LOCALID" in os.environ else placement.local_rank
    if index >= devices:
        raise launcher.LauncherError(
            f"LOCAL_RANK is {index}, but this host shows {devices} GPU(s): start one process a GPU on every host"
        )
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    return device


@contextmanager
def _announced(placement: launcher.Placement) -> Iterator[None]:
    """A process that waits for others says for whom: a wrong address shows in no other way until PATIENCE is over."""
    timer = threading.Timer(
        30,
        lambda: say(
            f"process {placement.rank} of {placement.world_size} ({socket.gethostname()}) still waits for the others "
            f"at {placement.master_addr}:{placement.master_port}"
        ),
    )
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _choose_interface(placement: launcher.Placement) -> None:
    """Gloo speaks over the interface of this host's own name, which is often 127.0.1.1 or of another network: on
    several hosts it is told the one that leads to the first of them."""
    if placement.world_size == placement.local_world_size or "GLOO_SOCKET_IFNAME" in os.environ:
        return
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            placement.master_addr, placement.master_port, type=socket.SOCK_DGRAM
        )[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)  # sends nothing
            own = probe.getsockname()[0]
    except OSError:  # init_distributed says which address it cannot reach
        return
    if ipaddress.ip_address(own).is_loopback:
        return
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address.partition("%")[0] == own for address in addresses):
            os.environ["GLOO_SOCKET_IFNAME"] = name


@functools.cache
def _patient_group() -> torch.distributed.ProcessGroup:
    """The default group gives up on a process after minutes; clustering for all takes hours."""
    return torch.distributed.new_group(backend="gloo", timeout=timedelta(days=30))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
