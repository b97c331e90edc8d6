"""`sgdm plan RECIPE --gpus 256 --gpu h100`: what training would take of many GPUs, before there are any.

Memory is predicted by engine/memory.py. The time of a step is a model of three parts: operations over the rate of the
device's matrix products that is assumed to be reached, bytes sent over the bandwidth of the slowest link, bytes of
optimizer and averages over the bandwidth of memory. Stages 1 to 3 send while they compute (DeepSpeed's overlap_comm,
which engine/zero.py sets), stage 0 does not. Every figure of time is a prediction.
"""

from __future__ import annotations

import bisect
import dataclasses
import difflib
import math
import sys
import time
from dataclasses import dataclass
from typing import NamedTuple

import torch
import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from engine.config import Config
from engine.config_error import ConfigError, require
from engine.console import guard, parse
from engine.distributed import computes_in_bf16, default_device
from engine.memory import SHARE, fewest_micro_batches, predict, trace_activations, trace_for_gpu
from engine.peak import matmul_rate, training_flops
from engine.telemetry import say
from engine.zero import LIVE, choose_stage, device_bytes
from sgdm.models.unet import UNet

REACHED = 0.5
"""Share of the rate of matrix products that training is assumed to reach. Not measured on a GPU."""

GPUS_A_NODE = 8
"""As many are joined by NVLink; more talk over the network."""

MOST_IMAGES = 2**16

PIPE_WIDTH = 200


@dataclass(frozen=True)
class Gpu:
    """A device's figures. Of links, what a GPU can send, which is half of what both directions are advertised as."""

    name: str
    memory: float
    """Bytes."""
    matmul: float
    """Operations a second of dense bf16 matrix products."""
    bandwidth: float
    """Bytes a second of its memory, read and written together."""
    link: float
    """Bytes a second to the GPUs of its node."""
    network: float
    """Bytes a second to other nodes."""
    source: str


# Data sheets give peaks. Of the H200, products and copies were measured.
GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("a100", 80e9, 312e12, 2.039e12, 300e9, 25e9, "data sheets of A100 80GB SXM and DGX A100 (8 x 200 Gb/s)"),
        Gpu("h100", 80e9, 989e12, 3.35e12, 450e9, 50e9, "data sheets of H100 SXM and DGX H100 (8 x 400 Gb/s)"),
        Gpu(
            "h200",
            141e9,
            790e12,
            4.3e12,
            450e9,
            50e9,
            "measured products and copies (data sheet: 989 TFLOP/s and 4.8 TB/s), else data sheets of H200 SXM and DGX "
            "H200 (8 x 400 Gb/s)",
        ),
        Gpu("b200", 180e9, 2250e12, 8e12, 900e9, 50e9, "data sheet of DGX B200 (an eighth; 8 x 400 Gb/s)"),
    )
}


class Traffic(NamedTuple):
    """Bytes that a process sends in an optimizer step."""

    all_reduce: float
    reduce_scatter: float
    all_gather: float

    @property
    def total(self) -> float:
        return sum(self)


class Time(NamedTuple):
    """Seconds of an optimizer step."""

    compute: float
    communication: float
    optimizer: float
    overlaps: bool

    @property
    def total(self) -> float:
        both = (self.compute, self.communication)
        return (max(both) if self.overlaps else sum(both)) + self.optimizer


def traffic(stage: int, parameters: int, world_size: int, accumulation: int) -> Traffic:
    """By rings, of fp32 gradients and weights: Rajbhandari et al. 1910.02054, section 7.

    Where the paper reduces and scatters, DeepSpeed's stages 1 and 2 all-reduce (use_multi_rank_bucket_allreduce), twice
    as much, and stage 2 after every micro-batch. Stage 3 gathers weights for the backward pass again only where they
    are too many to be kept."""
    part = 4.0 * parameters * (world_size - 1) / world_size
    if stage == 0:
        return Traffic(2 * part, 0.0, 0.0)
    if stage < 3:
        return Traffic(2 * part * (accumulation if stage == 2 else 1), 0.0, part)
    gathers = 1 if 2 * parameters <= LIVE else 2
    return Traffic(0.0, part * accumulation, gathers * part * accumulation)


def step_time(
    config: Config, gpu: Gpu, reached: float, stage: int, parameters: int, world_size: int, accumulation: int
) -> Time:
    training = config.training
    images = training.batch_size / world_size
    recomputed = 4 / 3 if training.activation_checkpointing else 1.0
    compute = images * training_flops(config.network) * recomputed / (gpu.matmul * reached)
    link = gpu.link if world_size <= GPUS_A_NODE else gpu.network
    # AdamW reads weight, gradient and two moments and writes three of them; the norm reads the gradient; an average
    # reads two and writes one.
    numbers = 8 + 3 * len(training.ema_decays)
    updated = parameters / (world_size if stage else 1)
    sent = traffic(stage, parameters, world_size, accumulation).total
    return Time(compute, sent / link if sent else 0.0, 4.0 * numbers * updated / gpu.bandwidth, overlaps=stage > 0)


class Row(NamedTuple):
    stage: int
    state: float
    """Bytes."""
    activations: float
    """Bytes of a micro-batch of the run, where one fits, else of an image."""
    largest: int
    """Micro-batch that fits; 0 where one image does not."""
    accumulation: int | None
    """Micro-batches of the run's batch; None where one image does not fit."""
    traffic: Traffic
    time: Time


def plan(config: Config, gpu: Gpu, world_size: int, reached: float, on_gpu: bool) -> list[Row]:
    """A row a stage. The batch must be a multiple of the number of processes."""
    training, parameters = config.training, count_parameters(config)
    activations = trace_for_gpu(config) if on_gpu else trace_activations(config, torch.device("cpu"))
    local = training.batch_size // world_size
    rows = []
    for stage in range(4):

        def total(micro_batch: int, stage: int = stage) -> float:
            return predict(training, stage, parameters, world_size, activations(micro_batch), 1, on_gpu).total

        accumulation = fewest_micro_batches(training, stage, parameters, world_size, activations, gpu.memory, on_gpu)
        rows.append(
            Row(
                stage,
                predict(training, stage, parameters, world_size, 0.0, 1, on_gpu).total,
                activations(training.batch_size // world_size // (accumulation or local)),
                bisect.bisect_right(range(1, MOST_IMAGES), SHARE * gpu.memory, key=total),
                accumulation,
                traffic(stage, parameters, world_size, accumulation or 1),
                step_time(config, gpu, reached, stage, parameters, world_size, accumulation or 1),
            )
        )
    return rows


def count_parameters(config: Config) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in UNet(config.network).parameters())


def this_machine(config: Config, link: float | None) -> Gpu:
    """The device at hand, measured: a few seconds of work."""
    device = default_device()
    bf16 = computes_in_bf16(config.training.precision, device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "this CPU"
    rate, bandwidth, sent = matmul_rate(device, "bf16" if bf16 else "fp32"), copy_rate(device), link or 0.0
    return Gpu(name, device_bytes(device), rate, bandwidth, sent, sent, "products and copies measured just now")


def copy_rate(device: torch.device) -> float:
    """Bytes a second that a copy reads and writes. Of several the fastest counts."""
    source = torch.ones(2**28 if device.type == "cuda" else 2**25, device=device)
    target = torch.empty_like(source)
    seconds = math.inf
    for _ in range(10):
        start = time.perf_counter()
        target.copy_(source)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = min(seconds, time.perf_counter() - start)
    return 2 * source.nbytes / seconds


def find_gpu(name: str, config: Config, link: float | None) -> Gpu:
    """ConfigError for an unknown one, with the nearest names."""
    if name == "this":
        return this_machine(config, link)
    if name not in GPUS:
        known = ["this", *GPUS]
        nearest = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known
        raise ConfigError(f"there is no GPU {name}; nearest: {', '.join(nearest)}")
    gpu = GPUS[name]
    if config.training.precision == "fp32":
        gpu = dataclasses.replace(gpu, matmul=gpu.matmul / 2)  # TF32 multiplies at half the rate
    return gpu if link is None else dataclasses.replace(gpu, link=link, network=link)


def divisible(config: Config, world_size: int) -> Config:
    """The configuration with the next batch that is a multiple of the number of processes."""
    batch_size = math.ceil(config.training.batch_size / world_size) * world_size
    return dataclasses.replace(config, training=dataclasses.replace(config.training, batch_size=batch_size))


COLUMNS = (
    "ZeRO",
    "state\nGB",
    "micro-\nbatches",
    "activations\nGB",
    "largest\nmicro-batch",
    "all-reduce\nGB/step",
    "reduce-scatter\nGB/step",
    "all-gather\nGB/step",
    "compute\nms",
    "send\nms",
    "optimizer\nms",
    "step\nms",
    "\nimages/s",
)


def show(config: Config, gpu: Gpu, world_size: int, reached: float, rows: list[Row]) -> None:
    training, parameters = config.training, count_parameters(config)
    automatic = dataclasses.replace(training, zero_stage="auto")
    local = training.batch_size // world_size
    chosen, reason = choose_stage(automatic, parameters, world_size, int(gpu.memory))
    say(
        f"{parameters / 1e6:.1f} M parameters at {config.network.image_size} px, {world_size} x {gpu.name}, "
        f"{training.batch_size} images a step, {local} a GPU"
    )
    link = gpu.link if world_size <= GPUS_A_NODE else gpu.network
    sends = f"; a GPU sends {link / 1e9:.3g} GB/s" if world_size > 1 else ""
    table = Table(box=box.SIMPLE_HEAD, header_style="dim", pad_edge=False)
    for column in COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        times = [row.time.compute, row.time.communication, row.time.optimizer, row.time.total]
        fits = row.accumulation is not None
        table.add_row(
            f"{row.stage}{' auto' if row.stage == chosen else ''}",
            f"{row.state / 1e9:.2f}",
            f"{row.accumulation} x {local // row.accumulation}" if row.accumulation else "none fits",
            f"{row.activations / 1e9:.2f}",
            f"{row.largest:,}",
            *(f"{sent / 1e9:.2f}" for sent in row.traffic),
            *(f"{1e3 * seconds:.1f}" if fits else "–" for seconds in times),
            f"{training.batch_size / row.time.total:,.0f}" if fits else "–",
            style="bold" if row.stage == chosen else "",
        )
    Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH).print(table)
    asked = "" if training.zero_stage == "auto" else f"; the recipe asks for {training.zero_stage}"
    say(f"auto chooses ZeRO {chosen}: {reason}{asked}")
    say(
        f"Memory: at most {100 * SHARE:.0f} % of {gpu.memory / 1e9:.0f} GB; traced from eager operators, which "
        "torch.compile mostly undercuts. Not measured on a GPU."
    )
    say(
        f"Time and images/s are PREDICTIONS: {100 * reached:.0f} % of {gpu.matmul / 1e12:.3g} TFLOP/s assumed, not "
        f"measured; {gpu.bandwidth / 1e12:.3g} TB/s of memory{sends}. From {gpu.source}."
    )


@dataclass(frozen=True)
class Options:
    gpus: int
    """How many."""
    gpu: str = "h100"
    """a100, h100, h200, b200, or `this`: the device of this machine, measured."""
    reached: float = REACHED
    """Share of the device's matrix products that training is assumed to reach."""
    link: float | None = None
    """Gigabytes a second that a GPU can send to the others; none: NVLink's up to 8, else the network's."""

    def __post_init__(self) -> None:
        require(self.gpus >= 1, f"--gpus is {self.gpus}: give at least 1")
        require(0 < self.reached <= 1, f"--reached is {self.reached}: give a share above 0, at most 1")
        require(self.link is None or self.link > 0, f"--link is {self.link}: give more than 0")


DESCRIPTION = """Predict memory, communication and speed of training a recipe on many GPUs, for every ZeRO stage.

[recipe | --config FILE] [--field value ...] as for sgdm train, beside the options below."""


def run(arguments: list[str]) -> None:
    options, rest = tyro.cli(
        Options, prog="sgdm plan", description=DESCRIPTION, args=arguments, return_unknown_args=True
    )
    config = divisible(parse("plan", rest), options.gpus)
    if options.gpu != "this" and config.training.precision == "auto":  # this machine may choose otherwise
        config = dataclasses.replace(config, training=dataclasses.replace(config.training, precision="bf16"))
    gpu = find_gpu(options.gpu, config, None if options.link is None else 1e9 * options.link)
    require(options.gpus == 1 or gpu.link > 0, "how fast this machine sends to others is not measured: give --link")
    on_gpu = options.gpu != "this" or torch.cuda.is_available()
    show(config, gpu, options.gpus, options.reached, plan(config, gpu, options.gpus, options.reached, on_gpu))


def main(arguments: list[str] | None = None) -> None:
    guard("plan", lambda: run(sys.argv[1:] if arguments is None else arguments))


if __name__ == "__main__":
    main()
