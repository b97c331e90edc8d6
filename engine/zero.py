"""How a run's state is divided among its processes: the ZeRO stage, offloading, and DeepSpeed's configuration."""

from __future__ import annotations

import os
from typing import Any

import psutil
import torch
import torch.distributed

from engine.config import TrainingConfig
from engine.config_error import ConfigError
from engine.distributed import Ranks

STATE_SHARE = 0.5
"""Of a device's memory that weights, gradients, optimizer and averages may take; activations need the rest."""


BUCKET = 20_000_000
"""Elements that are reduced and gathered at once. DeepSpeed's default of 5e8 holds a whole UNet, so that nothing would
overlap with the backward pass."""

LIVE = 1_000_000_000
"""Elements of gathered weights that stage 3 keeps for their next use: DeepSpeed's default."""


def state_bytes(stage: int, parameters: int, averages: int, world_size: int) -> float:
    """The most bytes a process holds of weights, gradients, masters, moments and averages, all fp32, and of DeepSpeed's
    buffers for them: at the end of a backward pass, without activations. Nothing is offloaded.

    `averages`: how many moving averages follow the masters.
    """
    return resting_bytes(stage, parameters, averages, world_size) + reducing_bytes(stage, parameters, world_size)


def resting_bytes(stage: int, parameters: int, averages: int, world_size: int, offloaded: bool = False) -> float:
    """What is there from one step to the next; `offloaded`: without the optimizer's part, which lies on the host.

    Rajbhandari et al. 1910.02054, section 5, with fp32 weights: stages 1 and 2 keep their flat part of the weights, the
    masters, beside the weights; stage 3 keeps gradients and a bucket. Of a bucket, here and below, what is ever filled
    counts; a GPU holds all of it, 80 MB."""
    weights = gradients = 4.0 * parameters
    optimizer = 0.0 if offloaded else (3 + averages) * 4.0 * parameters / world_size
    if stage == 0:
        return weights + (2 + averages) * 4.0 * parameters
    if stage < 3:
        return weights + optimizer
    return (weights + gradients) / world_size + optimizer + 4.0 * min(parameters, BUCKET)


def reducing_bytes(stage: int, parameters: int, world_size: int) -> float:
    """What comes to it while gradients are reduced: gradients, a bucket and a copy of it, this process's part."""
    whole, part, bucket = 4.0 * parameters, 4.0 * parameters / world_size, 4.0 * min(parameters, BUCKET)
    if stage == 0:  # flattened for the all-reduce, 5e8 elements at a time
        return whole + (4.0 * min(parameters, 500_000_000) if world_size > 1 else 0.0)
    if stage == 1:  # gradients go into the bucket when all are there
        return whole + max(bucket, part)
    if stage == 2:  # as they come; flattened in the end
        return part + max(2 * bucket, part)
    return 4.0 * min(parameters, LIVE)


def device_bytes(device: torch.device) -> int:
    """Memory that a process may use: its GPU's, or its share of the machine's."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return psutil.virtual_memory().total // local_processes()


def least_device_bytes(ranks: Ranks) -> int:
    """That of the process that has the least: all of them get the same."""
    least = torch.tensor(device_bytes(ranks.device), device=ranks.device)
    torch.distributed.all_reduce(least, torch.distributed.ReduceOp.MIN)
    return int(least)


def local_processes() -> int:
    """Processes of the run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or 1)


def choose_stage(training: TrainingConfig, parameters: int, world_size: int, memory: int) -> tuple[int, str]:
    """The stage of training.zero_stage, and why: the first whose state takes at most half of the device's memory."""
    averages = len(training.ema_decays) + len(training.ema_lengths)
    sizes = [state_bytes(stage, parameters, averages, world_size) for stage in range(4)]
    stage: int
    if training.zero_stage != "auto":
        stage, reason = training.zero_stage, "as configured"
    elif training.offload_parameters != "none":
        stage, reason = 3, "which offloading parameters needs"
    elif training.offload_optimizer != "none":
        stage, reason = 2, "which divides the most that offloading the optimizer leaves on the device"
    elif world_size == 1:
        stage, reason = 0, "as there is one process"
    else:
        fitting = [stage for stage in range(4) if sizes[stage] <= STATE_SHARE * memory]
        stage = fitting[0] if fitting else 3
        reason = f"the first that fits half of {memory / 1e9:.0f} GB" if fitting else "the least memory there is"
    return stage, f"{sizes[stage] / 1e9:.2f} GB of state a process, {reason}"


def deepspeed_config(
    training: TrainingConfig, stage: int, micro_batch: int, accumulation: int, ranks: Ranks
) -> dict[str, Any]:
    zero: dict[str, Any] = {
        "stage": stage,
        "reduce_bucket_size": BUCKET,
        "allgather_bucket_size": BUCKET,
        "overlap_comm": ranks.device.type == "cuda",
    }
    for name, place in (
        ("offload_optimizer", training.offload_optimizer),
        ("offload_param", training.offload_parameters),
    ):
        if place != "none":
            zero[name] = {"device": place, "pin_memory": ranks.device.type == "cuda"}
    guarded = guards_itself(training, stage)
    if stage in (1, 2) and guarded:
        zero["compute_grad_norm"] = False  # it would wait for the device
    return {
        "train_batch_size": micro_batch * accumulation * ranks.world_size,
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": 0.0 if guarded else training.gradient_clip,
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,  # torch's own runs where the masters lie
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31,
    }


def guards_itself(training: TrainingConfig, stage: int) -> bool:
    """Whether the optimizer clips and skips on the device (engine/optimizer.py).

    DeepSpeed does it, and waits for the device, where it updates sub-group by sub-group or on the host."""
    return stage < 3 and training.offload_optimizer == "none"


def check_stage(training: TrainingConfig, stage: int) -> None:
    """ConfigError for offloading that a stage cannot do."""
    for name, needed in (("offload_optimizer", 1), ("offload_parameters", 3)):
        place = getattr(training, name)
        if place != "none" and stage < needed:
            raise ConfigError(
                f"training.{name} {place} needs ZeRO stage {needed} or more, this run has {stage}: "
                f"give training.zero_stage {needed}, or auto"
            )
