"""How a run's state is divided among its processes: the ZeRO stage, offloading, and DeepSpeed's configuration."""

from __future__ import annotations

import os
from typing import Any

import psutil
import torch

from engine.config import ConfigError, TrainingConfig
from engine.distributed import Ranks

STATE_SHARE = 0.5
"""Of a device's memory that weights, gradients, optimizer and averages may take; activations need the rest."""


def state_bytes(stage: int, parameters: int, averages: int, world_size: int) -> float:
    """Bytes a process of weights, gradients, masters, moments and averages, all fp32, without buffers.

    Rajbhandari et al. 1910.02054, section 5, with fp32 weights: stages 1 and 2 keep their flat part of the weights
    beside the weights themselves. `averages`: how many moving averages follow the masters.
    """
    weights, gradients, masters, moments = 4.0, 4.0, 4.0, 8.0
    optimizer = moments + 4.0 * averages
    if stage == 0:
        return parameters * (weights + gradients + optimizer)
    shared = (masters + optimizer) / world_size
    if stage == 1:
        return parameters * (weights + gradients + shared)
    if stage == 2:
        return parameters * (weights + gradients / world_size + shared)
    return parameters * ((weights + gradients) / world_size + shared)


def device_bytes(device: torch.device) -> int:
    """Memory that a process may use: its GPU's, or its share of the machine's."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return psutil.virtual_memory().total // int(os.environ.get("LOCAL_WORLD_SIZE") or 1)


def choose_stage(training: TrainingConfig, parameters: int, world_size: int, memory: int) -> tuple[int, str]:
    """The stage of training.zero_stage, and why: the first whose state takes at most half of the device's memory."""
    averages = len(training.ema_decays)
    sizes = [state_bytes(stage, parameters, averages, world_size) for stage in range(4)]
    stage: int
    if training.zero_stage != "auto":
        stage, reason = training.zero_stage, "as configured"
    elif training.offload_parameters != "none" or training.offload_optimizer == "nvme":
        stage, reason = 3, "which offloading parameters or to NVMe needs"
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
        # The default of 5e8 elements holds a whole UNet, so that nothing would overlap with the backward pass.
        "reduce_bucket_size": 20_000_000,
        "allgather_bucket_size": 20_000_000,
    }
    for name, place in (
        ("offload_optimizer", training.offload_optimizer),
        ("offload_param", training.offload_parameters),
    ):
        if place != "none":
            zero[name] = {"device": place, "pin_memory": ranks.device.type == "cuda"}
        if place == "nvme":
            assert training.offload_folder is not None
            training.offload_folder.mkdir(parents=True, exist_ok=True)
            zero[name]["nvme_path"] = str(training.offload_folder)
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
    needed = 3 if training.offload_parameters != "none" or training.offload_optimizer == "nvme" else 1
    if stage < needed and (training.offload_optimizer, training.offload_parameters) != ("none", "none"):
        raise ConfigError(
            f"training.offload_optimizer {training.offload_optimizer} with training.offload_parameters "
            f"{training.offload_parameters} needs ZeRO stage {needed} or more, this run has {stage}: "
            f"give training.zero_stage {needed}, or auto"
        )
