"""`python -m benchmarks.memory --out FILE.json`: memory of training processes on a CPU, beside what engine/memory.py
predicts of it.

Each case trains in processes of its own, for a few steps through the trainer itself, on images of zeros. A process's
memory is its own (anonymous pages), at the highest the kernel saw in a step, less what it had when everything was
imported and a convolution and an all-reduce had been tried. glibc is told to hand every freed tensor back.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro

from benchmarks.machine import describe
from engine import distributed
from engine.annotation_config import AnnotationConfig
from engine.config import Config, DataConfig, TrainingConfig
from engine.distributed import Ranks
from engine.memory import predict, trace_activations
from engine.telemetry import say
from engine.trainer import Trainer
from sgdm.data.guides import Drawn
from sgdm.data.loader import Batch
from sgdm.files import write_json
from sgdm.models.config import UNetConfig

CPU = torch.device("cpu")
MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_MMAP_THRESHOLD_": "65536"}
"""Of the processes to come. One arena and no cache of freed memory: what is resident is what lives."""
NETWORKS: dict[str, tuple[int, UNetConfig]] = {
    "5M": (64, UNetConfig(channels=48, channel_multipliers=(1, 2, 2))),
    "19M": (64, UNetConfig(channels=64)),
    "74M": (32, UNetConfig()),
}
"""Side of the images, and the network."""


@dataclass(frozen=True, kw_only=True)
class Case:
    network: str
    stage: int
    processes: int = 2
    micro_batch: int = 4
    accumulation: int = 1
    precision: str = "fp32"
    activation_checkpointing: bool = False

    def config(self, run: Path) -> Config:
        side, network = NETWORKS[self.network]
        return Config(
            run=run,
            data=DataConfig(source="none", folder=run, image_size=side),
            annotation=AnnotationConfig(num_clusters=100),
            model=network,
            training=TrainingConfig(
                images=10**6,
                batch_size=self.processes * self.accumulation * self.micro_batch,
                accumulation=self.accumulation,
                zero_stage=self.stage,  # type: ignore[arg-type]
                precision=self.precision,  # type: ignore[arg-type]
                activation_checkpointing=self.activation_checkpointing,
                compile="off",
            ),
        )


STEPS = 2
"""From the second on all state is there."""

CASES = (
    *(Case(network=network, stage=stage) for network in NETWORKS for stage in range(4)),
    Case(network="19M", stage=0, processes=1),
    Case(network="19M", stage=0, accumulation=2),
    Case(network="19M", stage=1, activation_checkpointing=True),
    Case(network="19M", stage=1, precision="bf16"),
)


@dataclass(frozen=True)
class Arguments:
    """Memory of training processes on a CPU: measured and predicted."""

    out: Annotated[Path, tyro.conf.arg(metavar="FILE.json")]
    """Where the figures go."""
    networks: tuple[str, ...] = field(default_factory=lambda: tuple(NETWORKS))
    """Which of the networks."""


def main(arguments: list[str] | None = None) -> None:
    parsed = tyro.cli(Arguments, prog="python -m benchmarks.memory", args=arguments)
    rows = []
    say(f"{'network':8}{'stage':>6}{'processes':>10}{'batch':>7}{'measured MB':>13}{'predicted':>11}{'error':>8}")
    for case in CASES:
        if case.network not in parsed.networks:
            continue
        row = compare(case)
        rows.append(row)
        say(
            f"{case.network:8}{case.stage:6}{case.processes:10}{case.accumulation:3} x{case.micro_batch:2}"
            f"{row['measured'] / 1e6:13.0f}{row['predicted'] / 1e6:11.0f}{100 * row['error']:+7.1f}%"
        )
        write_json(parsed.out, describe(CPU) | {"rows": rows})
    say(f"All figures: {parsed.out.resolve()}")


def compare(case: Case) -> dict[str, Any]:
    """A case's bytes a process, of the one that has most, measured and predicted; the error is a share of measured."""
    measured = in_processes(train, case)
    config = case.config(Path())
    activations = trace_activations(config, CPU)(case.micro_batch)
    predicted = predict(
        config.training,
        case.stage,
        measured[0]["parameters"],
        case.processes,
        activations,
        case.accumulation,
        on_gpu=False,
    )
    most = max(row["bytes"] for row in measured)
    return asdict(case) | {
        "parameters": measured[0]["parameters"],
        "measured": most,
        "predicted": predicted.total,
        "predicted_activations": predicted.activations,
        "error": predicted.total / most - 1,
        "resting": max(row["resting"] for row in measured),
    }


def in_processes(function: Callable[[Case, Path, Ranks], dict[str, Any]], case: Case) -> list[dict[str, Any]]:
    """What the function returns in each process of a case."""
    port = distributed._free_port()
    os.environ.update(MALLOC, OMP_NUM_THREADS="1")
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(case.processes, mp_context=get_context("spawn")) as pool,
    ):
        done = [pool.submit(_join, function, case, rank, port, Path(folder)) for rank in range(case.processes)]
        return [each.result() for each in done]


def _join(
    function: Callable[[Case, Path, Ranks], dict[str, Any]], case: Case, rank: int, port: int, folder: Path
) -> dict[str, Any]:
    size, number = str(case.processes), str(rank)
    os.environ.update(RANK=number, LOCAL_RANK=number, WORLD_SIZE=size, LOCAL_WORLD_SIZE=size)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    ranks = distributed.initialize()
    torch.set_num_threads(1)
    return function(case, folder, ranks)


def train(case: Case, folder: Path, ranks: Ranks) -> dict[str, Any]:
    """A process's bytes at the fullest moment of the last step, and at rest after it."""
    _import_and_try()
    before = _status()["RssAnon"]
    step, parameters = make_step(case, folder, ranks)
    for _ in range(STEPS):
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
        step()
    status = _status()
    return {
        "parameters": parameters,
        "bytes": status["VmHWM"] - status["RssFile"] - status["RssShmem"] - before,
        "resting": status["RssAnon"] - before,
    }


def make_step(case: Case, folder: Path, ranks: Ranks) -> tuple[Callable[[], None], int]:
    """The trainer's optimizer step on images of zeros, and the number of parameters."""
    config = case.config(folder)
    trainer = Trainer(config, None, None, {}, ranks)  # type: ignore[arg-type]  # neither is asked for anything here
    parameters = sum(getattr(p, "ds_numel", p.numel()) for p in trainer.engine.module.network.parameters())
    side, images = config.data.image_size, trainer.local_batch
    batch = Batch(torch.zeros(images, 3, side, side, dtype=torch.uint8), *(torch.zeros(images),) * 3)
    return lambda: trainer._step(batch, Drawn(torch.zeros(images, dtype=torch.long), None)), parameters


def _import_and_try() -> None:
    """What DeepSpeed imports as it begins, tens of megabytes, and what libraries make at their first use."""
    import deepspeed.runtime.zero.muon.muon_optimizer
    import deepspeed.runtime.zero.stage3
    import deepspeed.runtime.zero.stage_1_and_2  # noqa: F401

    convolution = torch.nn.Conv2d(8, 8, 3)
    convolution(torch.randn(2, 8, 8, 8)).sum().backward()
    torch.distributed.all_reduce(torch.from_numpy(np.ones(10)))


def _status() -> dict[str, int]:
    """Bytes of /proc/self/status."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(status[name].split()[0]) * 1024 for name in ("VmHWM", "RssAnon", "RssFile", "RssShmem")}


if __name__ == "__main__":
    main()
