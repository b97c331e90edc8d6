"""The shapes that operations meet inside the UNets, found by running the networks on torch's meta device."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import nn

from engine.peak import one_image
from engine.recipes import imagenet32, imagenet64
from sgdm.models.config import UNetConfig
from sgdm.models.layers import GroupNorm, SelfAttention
from sgdm.models.unet import UNet

PAPER = imagenet64().network
NETWORKS = (
    imagenet32().network,
    PAPER,
    UNetConfig(image_size=32, in_channels=4, out_channels=4),  # latents of images of 256 pixels
)
# Dhariwal and Nichol's network for 64 pixels (arXiv 2105.05233, table 11) attends at a half of the resolution too.
ADM = UNetConfig(
    channels=192,
    channel_multipliers=(1, 2, 3, 4),
    residual_blocks=3,
    attention_downsamples=(2, 4, 8),
    head_channels=64,
)


class NormShape(NamedTuple):
    channels: int
    height: int
    width: int
    num_groups: int
    scaled: bool
    """Whether any group norm of this size is given a scale and a shift."""


class AttentionShape(NamedTuple):
    tokens: int
    heads: int
    dim: int


@cache
def group_norm_shapes() -> list[NormShape]:
    """Every distinct size of a group norm with SiLU, the most pixels first."""
    scaled: dict[tuple[int, int, int, int], bool] = {}

    def look(norm: GroupNorm, inputs: tuple[Any, ...]) -> None:
        if norm.activation == "silu":
            _, C, H, W = inputs[0].shape
            size = C, H, W, norm.num_groups
            scaled[size] = scaled.get(size, False) or len(inputs) == 3

    for config in NETWORKS:
        _look_at(GroupNorm, look, config)
    shapes = [NormShape(*size, any_scaled) for size, any_scaled in scaled.items()]
    return sorted(shapes, key=lambda shape: (-shape.height, shape.channels))


@cache
def attention_shapes() -> list[AttentionShape]:
    """Every distinct size of self-attention, the fewest tokens first."""
    shapes: set[AttentionShape] = set()

    def look(attention: SelfAttention, inputs: tuple[Any, ...]) -> None:
        _, C, H, W = inputs[0].shape
        shapes.add(AttentionShape(H * W, attention.heads, C // attention.heads))

    for config in (*NETWORKS, ADM):
        _look_at(SelfAttention, look, config)
    return sorted(shapes)


def _look_at(kind: type[nn.Module], look: Callable[[Any, tuple[Any, ...]], None], config: UNetConfig) -> None:
    """Calls `look` with every layer of a kind and its inputs."""
    with torch.device("meta"):
        network = UNet(config)
        for module in network.modules():
            if isinstance(module, kind):
                module.register_forward_pre_hook(look)
        network(*one_image(config))
