"""One forward pass of training, from stored images to losses: what DeepSpeed holds, and what is compiled."""

from __future__ import annotations

from collections.abc import Callable

import torch
from deepspeed.utils import set_z3_leaf_modules
from torch import Tensor, nn

from engine.compilation import Compilation
from sgdm.conditions import flip_images, make_condition
from sgdm.data.guides import Drawn
from sgdm.diffusion.objective import Objective
from sgdm.models.embedding import Guide
from sgdm.models.unet import Stage, UNet


def _in_channels_last(stage: Callable[[Tensor, Guide], Tensor]) -> Callable[[Tensor, Guide], Tensor]:
    """The layout of a single image is ambiguous, and the hooks of ZeRO 3 lose it."""
    return lambda x, guide: stage(x.contiguous(memory_format=torch.channels_last), guide)


class TrainingStep(nn.Module):
    """Stored images and their random numbers to a loss of each.

    It is compiled as one graph; where ZeRO 3 gathers weights block by block, each block is one.
    """

    def __init__(
        self, network: UNet, objective: Objective, bf16: bool, compilation: Compilation, by_block: bool
    ) -> None:
        super().__init__()
        self.network = network
        self.objective = objective
        self.bf16 = bf16
        # The inside is compiled and not the module: DeepSpeed hangs hooks on modules that dynamo cannot trace.
        self._compiled_losses = self._losses if by_block else compilation(self._losses)
        if by_block:
            set_z3_leaf_modules(network, [Stage])
            for module in network.modules():
                if isinstance(module, Stage):
                    module.forward = compilation(_in_channels_last(module.forward))  # type: ignore[method-assign]

    def forward(
        self, image: Tensor, drawn: Drawn, dropped: Tensor, flipped: Tensor | None, noise: Tensor, uniform: Tensor
    ) -> Tensor:
        """image uint8 [B,3,H,W], the guides drawn for it, dropped and flipped bool [B], noise float32 [B,3,H,W],
        uniform float32 [B] -> losses float32 [B]."""
        return self._compiled_losses(image, drawn, dropped, flipped, noise, uniform)

    def _losses(
        self, image: Tensor, drawn: Drawn, dropped: Tensor, flipped: Tensor | None, noise: Tensor, uniform: Tensor
    ) -> Tensor:
        clean = image.to(torch.float32) / 127.5 - 1
        config = self.network.config
        condition = make_condition(drawn.cluster, drawn.layout, config.num_attributes)
        if flipped is not None:
            clean = flip_images(clean, flipped)
            condition = None if condition is None else condition.flip(flipped)
        if condition is not None:
            condition = condition.drop(dropped, config.num_clusters)
        with torch.autocast(image.device.type, torch.bfloat16, enabled=self.bf16):
            return self.objective.loss(self.network, clean, condition, noise, uniform)
