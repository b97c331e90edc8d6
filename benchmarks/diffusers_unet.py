"""diffusers' UNet of the shape of ours: the same channels, blocks, resampling in blocks and attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sgdm.conditions import Condition
from sgdm.models.config import UNetConfig


class DiffusersUNet(nn.Module):
    """diffusers.UNet2DModel under the signature of our UNet, its weights in channels_last as its guide to speed says.

    Its 1x1 skip convolutions, scale and shift and heads are ours too. Its class embedding is added to the time's, where
    ours is joined to it: 3 % of the paper's weights, and next to no operations.
    """

    def __init__(self, config: UNetConfig) -> None:
        from diffusers import UNet2DModel  # a peer, and no dependency of the benchmarks

        super().__init__()
        attends = [downsample in config.attention_downsamples for downsample in config.downsamples]
        down = ["AttnDownBlock2D" if here else "ResnetDownsampleBlock2D" for here in attends]
        up = ["AttnUpBlock2D" if here else "ResnetUpsampleBlock2D" for here in reversed(attends)]
        network: Any = UNet2DModel(
            sample_size=config.image_size,
            in_channels=config.in_channels,
            out_channels=config.out_channels,
            down_block_types=down,
            up_block_types=up,
            block_out_channels=config.widths,
            layers_per_block=config.residual_blocks,
            downsample_type="resnet",
            upsample_type="resnet",
            dropout=config.dropout,
            attention_head_dim=config.widths[-1] // config.heads_of(config.widths[-1]),
            norm_num_groups=min(32, config.channels // 4),
            resnet_time_scale_shift="scale_shift",
            num_class_embeds=(config.num_clusters or 0) + 1,
        )
        self.network = network.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        return self.network(x, time, condition.cluster).sample


def size_of(config: UNetConfig) -> tuple[int, int]:
    """Its weights, and the operations of a forward pass of one image, as torch counts them."""
    with torch.device("meta"):
        network = DiffusersUNet(config)
        size = config.image_size
        x = torch.zeros(1, config.in_channels, size, size)
        with FlopCounterMode(display=False) as counter:
            network(x, torch.zeros(1), Condition(torch.zeros(1, dtype=torch.long)))
    return sum(parameter.numel() for parameter in network.parameters()), counter.get_total_flops()
