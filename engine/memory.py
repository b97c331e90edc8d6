"""What a training process holds in memory, found without a device and without computing anything.

State is counted from DeepSpeed's buffers (engine/zero.py). Activations are counted by tracing a training step over
tensors that have shapes and no contents: what is alive at its fullest moment, beside weights and gradients.

What is traced are eager operators: torch.compile fuses and recomputes, and mostly keeps less. Libraries' own workspaces
and a GPU's context are not counted: for them, and for fragments, there is SHARE.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import psutil
import torch
import torch.distributed
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from engine.compilation import Compilation
from engine.config import Config, TrainingConfig
from engine.config_error import ConfigError
from engine.distributed import Ranks, computes_in_bf16
from engine.step import TrainingStep
from engine.zero import local_processes, reducing_bytes, resting_bytes
from kernels import group_norm_triton
from sgdm.data.guides import Drawn
from sgdm.diffusion.objective import make_objective
from sgdm.models.unet import UNet

SHARE = 0.85
"""Of the memory that is free, what a step may be predicted to take."""

TRACED = (2, 64)
"""Images of the two traces that the line of Activations goes through."""


class Activations(NamedTuple):
    """Bytes at the fullest moment of a micro-batch: what its backward pass needs and what operators hold meanwhile."""

    fixed: float
    """Of any micro-batch, such as bf16 copies of the weights."""

    an_image: float

    def __call__(self, micro_batch: int) -> float:
        return self.fixed + self.an_image * micro_batch


class Memory(NamedTuple):
    """Bytes of a process at the fullest moment of a training step."""

    state: float
    activations: float

    @property
    def total(self) -> float:
        return self.state + self.activations


def predict(
    training: TrainingConfig,
    stage: int,
    parameters: int,
    world_size: int,
    activations: float,
    accumulation: int,
    on_gpu: bool,
) -> Memory:
    """What a process holds where its backward pass begins, or while gradients are reduced, whichever is more.

    Between the two activations go as gradients come, so that those of the first micro-batch never add up."""
    offloaded = on_gpu and training.offload_optimizer != "none"  # of a CPU the host is the device
    resting = resting_bytes(stage, parameters, len(training.ema_decays), world_size, offloaded)
    reducing = reducing_bytes(stage, parameters, world_size)
    weights = 4.0 * parameters
    earlier = {0: weights, 1: weights, 2: weights / world_size, 3: 0.0}[stage] if accumulation > 1 else 0.0  # gradients
    beside = reducing if stage == 3 else earlier  # stage 3 has gathered its weights then
    if activations + beside > reducing:
        return Memory(resting + beside, activations)
    return Memory(resting + reducing, 0.0)


def trace_activations(config: Config, device: torch.device) -> Activations:
    """Activations of the training step of a configuration, of eager operators of this type of device."""
    few, many = TRACED
    least, most = (activation_bytes(config, micro_batch, device) for micro_batch in TRACED)
    an_image = (most - least) / (many - few)
    return Activations(max(least - few * an_image, 0.0), an_image)


def trace_for_gpu(config: Config) -> Activations:
    """Those of a GPU where there may be none: a CPU's operators, but for the group norm that a GPU has in Triton, which
    keeps less than half for the backward pass."""
    if torch.cuda.is_available():
        return trace_activations(config, torch.device("cuda"))
    if config.training.group_norm == "auto":
        config = dataclasses.replace(config, training=dataclasses.replace(config.training, group_norm="triton"))
    interpreted = group_norm_triton.INTERPRETED
    group_norm_triton.INTERPRETED = True  # what is traced and not run needs no device
    try:
        return trace_activations(config, torch.device("cpu"))
    finally:
        group_norm_triton.INTERPRETED = interpreted


def activation_bytes(config: Config, micro_batch: int, device: torch.device) -> float:
    """The most bytes that a micro-batch holds beside weights and gradients. A trace takes seconds of one core."""
    training, diffusion, network_config = config.training, config.diffusion, config.network
    objective = make_objective(diffusion.prediction, diffusion.schedule, diffusion.min_snr_gamma)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device(device):
        objective.to_empty(device=device)  # its tables
        network = UNet(network_config, training.backends)
        network.keeps_activations = not training.activation_checkpointing
        bf16 = computes_in_bf16(training.precision, device)
        step = TrainingStep(network, objective, bf16, Compilation("off"), by_block=False)
        for parameter in network.parameters():
            parameter.grad = torch.empty_like(parameter)
        side = network_config.image_size
        cluster = torch.empty(micro_batch, dtype=torch.long) if network_config.num_clusters else None
        layout = None
        if network_config.mask_channels:
            shape = (micro_batch, side, side) if network_config.num_attributes else (micro_batch, 1, side, side)
            layout = torch.empty(shape, dtype=torch.uint8)
        with _Live() as live:
            image = torch.empty(micro_batch, 3, side, side, dtype=torch.uint8)
            flags = torch.empty(micro_batch, dtype=torch.bool)
            noise, uniform = torch.empty(micro_batch, 3, side, side), torch.empty(micro_batch)
            losses = step(image, Drawn(cluster, layout), flags, flags if training.flip else None, noise, uniform)
            losses.mean().backward()
    return live.most


class _Live(TorchDispatchMode):
    """Bytes of the tensors that were made within it and are still there, and the most that there were."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Any, arguments: Any = (), keywords: Any = None
    ) -> Any:
        result = function(*arguments, **(keywords or {}))
        # What an operator returns may be the memory of what it was given, which came before.
        given = {_key(tensor) for tensor in tree_leaves((arguments, keywords)) if isinstance(tensor, Tensor)}
        for tensor in tree_leaves(result):
            if not isinstance(tensor, Tensor) or (key := _key(tensor)) in given or key in self._known:
                continue
            storage = tensor.untyped_storage()
            self._known.add(key)
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._free, key, storage.nbytes())
        return result

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def free_bytes(ranks: Ranks) -> float:
    """Memory that a step may take on the fullest of all processes' devices. Called by all of them."""
    if ranks.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(ranks.device)
        mine = free + torch.cuda.memory_reserved(ranks.device)
    else:
        mine = psutil.virtual_memory().available // local_processes()
    least = torch.tensor(float(mine), dtype=torch.float64, device=ranks.device)
    if ranks.world_size > 1:
        torch.distributed.all_reduce(least, torch.distributed.ReduceOp.MIN)
    return least.item()


def find_accumulation(config: Config, parameters: int, stage: int, ranks: Ranks, memory: float) -> int:
    """The fewest micro-batches that a process's part of the global batch divides into and whose predicted memory is at
    most SHARE of `memory` bytes. ConfigError where one image is too many.

    Processes that are given the same find the same."""
    training, world_size, on_gpu = config.training, ranks.world_size, ranks.device.type == "cuda"
    if training.batch_size % world_size:
        return 1  # engine/trainer.py says what is wrong
    local = training.batch_size // world_size
    whole = activation_bytes(config, local, ranks.device)  # one trace says so where all of it fits
    if predict(training, stage, parameters, world_size, whole, 1, on_gpu).total <= SHARE * memory:
        return 1
    activations = trace_activations(config, ranks.device)
    found = fewest_micro_batches(training, stage, parameters, world_size, activations, memory, on_gpu)
    if found is not None:
        return found
    need = predict(training, stage, parameters, world_size, activations(1), local, on_gpu)
    raise ConfigError(
        f"not even one image at a time fits: {need.state / 1e9:.2f} GB of weights, gradients and optimizer at ZeRO "
        f"{stage} and {need.activations / 1e9:.2f} GB of activations, where {SHARE * memory / 1e9:.2f} GB "
        f"({100 * SHARE:.0f} % of what is free) may be used: set "
        "training.activation_checkpointing, training.zero_stage, training.offload_optimizer or "
        "training.offload_parameters, or make the model smaller"
    )


def fewest_micro_batches(
    training: TrainingConfig,
    stage: int,
    parameters: int,
    world_size: int,
    activations: Activations,
    memory: float,
    on_gpu: bool,
) -> int | None:
    """See find_accumulation; None where one image is too many."""
    local = training.batch_size // world_size
    for accumulation in (parts for parts in range(1, local + 1) if local % parts == 0):
        held = activations(local // accumulation)
        if predict(training, stage, parameters, world_size, held, accumulation, on_gpu).total <= SHARE * memory:
            return accumulation
    return None
