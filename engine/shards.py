"""What a process holds of weights and optimizer state under each ZeRO stage, and the way from there to whole tensors.

The optimizer updates fp32 tensors, the masters: the weights themselves at stage 0, a flat part of them at the others.
Any list of tensors of the masters' shapes, moments and averages among them, is gathered and scattered alike.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from torch import Tensor, nn

from engine.distributed import Ranks

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's names of its running means of gradients and of their squares."""


class Shards(ABC):
    """This process's part of a network's fp32 state. Whole tensors have the parameters' shapes and lie on the run's
    device; `gather` must be called by all processes."""

    masters: list[Tensor]

    def __init__(self, network: nn.Module, optimizer: torch.optim.Optimizer, ranks: Ranks) -> None:
        self.names = [name for name, _ in network.named_parameters()]
        self.parameters = [parameter for _, parameter in network.named_parameters()]
        self._optimizer, self._ranks, self.device = optimizer, ranks, ranks.device

    @abstractmethod
    def gather(self, index: int, shards: Sequence[Tensor]) -> Tensor:
        """The whole tensor of parameter number `index`, of shards laid out as masters."""

    @abstractmethod
    def scatter(self, index: int, whole: Tensor, shards: Sequence[Tensor]) -> None:
        """Writes this process's part of a whole tensor into shards laid out as masters."""

    @abstractmethod
    def set_weight(self, index: int, whole: Tensor) -> None:
        """Gives a parameter these values, the masters and what the network computes with."""

    @property
    def _updated(self) -> list[Tensor]:
        """What the optimizer keeps state of."""
        return self.masters

    def moments(self, name: str) -> list[Tensor]:
        """One of MOMENTS, laid out as masters; zeros before the first step."""
        return [self._state(tensor)[name] for tensor in self._updated]

    @property
    def steps(self) -> int:
        """Steps that the optimizer took, without those that it skipped. Waits for the device."""
        return int(self._state(self._updated[0])["step"])

    @steps.setter
    def steps(self, steps: int) -> None:
        for tensor in self._updated:
            self._state(tensor)["step"].fill_(steps)

    def _state(self, tensor: Tensor) -> dict[str, Tensor]:
        """The optimizer's state of a tensor, made as its first step would."""
        state = self._optimizer.state[tensor]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=tensor.device)
            for name in MOMENTS:
                state[name] = torch.zeros_like(tensor)
        return state


class WholeShards(Shards):
    """Stage 0: every process holds everything."""

    def __init__(self, network: nn.Module, optimizer: torch.optim.Optimizer, ranks: Ranks) -> None:
        super().__init__(network, optimizer, ranks)
        self.masters = list(self.parameters)

    def gather(self, index: int, shards: Sequence[Tensor]) -> Tensor:
        return shards[index].detach()

    @torch.no_grad()
    def scatter(self, index: int, whole: Tensor, shards: Sequence[Tensor]) -> None:
        shards[index].copy_(whole)

    def set_weight(self, index: int, whole: Tensor) -> None:
        self.scatter(index, whole, self.masters)


class FlatShards(Shards):
    """Stages 1 and 2: the optimizer updates one flat part of all weights laid end to end; the network has all."""

    def __init__(self, network: nn.Module, zero: Any, ranks: Ranks) -> None:
        super().__init__(network, zero.optimizer, ranks)
        self.masters = zero.single_partition_of_fp32_groups
        assert len(self.masters) == 1, "one group of parameters"

    def gather(self, index: int, shards: Sequence[Tensor]) -> Tensor:
        parameter = self.parameters[index]
        whole = torch.zeros(parameter.numel(), dtype=torch.float32, device=parameter.device)
        mine = self._mine(index, shards)
        if mine is not None:
            place, part = mine
            whole[place] = part.to(whole.device)
        torch.distributed.all_reduce(whole)
        return whole.view_as(parameter)

    @torch.no_grad()
    def scatter(self, index: int, whole: Tensor, shards: Sequence[Tensor]) -> None:
        mine = self._mine(index, shards)
        if mine is not None:
            place, part = mine
            part.copy_(whole.flatten()[place])

    @torch.no_grad()
    def set_weight(self, index: int, whole: Tensor) -> None:
        self.scatter(index, whole, self.masters)
        self.parameters[index].copy_(whole)

    def _mine(self, index: int, shards: Sequence[Tensor]) -> tuple[slice, Tensor] | None:
        """Where in a flattened parameter this process's part lies, and that part of the shards; None if it has none."""
        mapping: Any = self.parameters[index]._hp_mapping  # type: ignore[attr-defined]
        if mapping is None:
            return None
        place, shard = mapping.lp_fragment_address, mapping.get_hp_fragment_address()
        return slice(place.start, place.start + place.numel), shards[0].detach().narrow(0, shard.start, shard.numel)


class PartitionedShards(Shards):
    """Stage 3: an equal part of every weight, of the optimizer's state and of the network alike."""

    def __init__(self, network: nn.Module, zero: Any, ranks: Ranks) -> None:
        super().__init__(network, zero.optimizer, ranks)
        self._zero = zero
        self._places = [zero.grad_position[zero.get_param_id(parameter)] for parameter in self.parameters]
        self.masters = self._parts(zero.fp32_partitioned_groups_flat)

    @property
    def _updated(self) -> list[Tensor]:
        return list(self._zero.fp32_partitioned_groups_flat)

    def moments(self, name: str) -> list[Tensor]:
        return self._parts(super().moments(name))

    def gather(self, index: int, shards: Sequence[Tensor]) -> Tensor:
        parameter: Any = self.parameters[index]
        part = shards[index].detach().to(self._ranks.device)
        whole = torch.empty(self._ranks.world_size * part.numel(), dtype=torch.float32, device=self._ranks.device)
        torch.distributed.all_gather_into_tensor(whole, part.contiguous())
        return whole[: parameter.ds_numel].view(parameter.ds_shape)

    def scatter(self, index: int, whole: Tensor, shards: Sequence[Tensor]) -> None:
        mine = self._mine(index, whole)
        shards[index].detach()[: len(mine)] = mine

    @torch.no_grad()
    def set_weight(self, index: int, whole: Tensor) -> None:
        parameter: Any = self.parameters[index]
        mine = self._mine(index, whole)
        for part in (self.masters[index].detach(), parameter.ds_tensor):
            part[: len(mine)] = mine
        if parameter.ds_status == ZeroParamStatus.AVAILABLE:  # a small one, which stays gathered
            parameter.data.copy_(whole)

    def _mine(self, index: int, whole: Tensor) -> Tensor:
        size = self.masters[index].numel()
        return whole.flatten()[self._ranks.rank * size : (self._ranks.rank + 1) * size]

    def _parts(self, flats: Sequence[Tensor]) -> list[Tensor]:
        return [flats[group].detach().narrow(0, start, numel) for group, start, numel in self._places]


def make_shards(network: nn.Module, engine: Any, ranks: Ranks) -> Shards:
    """The shards of a network that a DeepSpeed engine trains."""
    stage = engine.zero_optimization_stage()
    kind = (WholeShards, FlatShards, FlatShards, PartitionedShards)[stage]
    return kind(network, engine.optimizer, ranks)
