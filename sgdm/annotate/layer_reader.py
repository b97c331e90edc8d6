"""What a layer of a timm network gives: its output, or the queries, keys or values of its attention."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from sgdm.annotate.names import Part

PARTS: tuple[Part, ...] = ("queries", "keys", "values")  # in the order in which timm projects them

Reader = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Pixels of the network's input [B, 3, H, W] -> the layer's patches [B, D, h, w], and its class and register tokens
[B, T, D], where T may be 0."""


def layer_reader(network: Any, layer: int, part: Part) -> Reader:
    """The way to `part` of a block of a transformer, or of a stage of a convolutional network, negative from the last.

    Output tokens are normed as those of the last layer are. Queries, keys and values are those of all heads, side by
    side. ValueError, to go on from the network's name, where there is no such layer or part.
    """
    layers = len(network.feature_info)
    if not -layers <= layer < layers:
        raise ValueError(f"has {layers} layers, and no layer {layer}")
    number = layer % layers
    if part == "tokens":
        return lambda pixels: _output(network, pixels, number, norm=True)
    try:
        block = network.blocks[number]
        project = block.attn.qkv
    except AttributeError as error:
        raise ValueError(f"has no {part} of attention: give part tokens") from error
    if number == 0:
        raise ValueError(f"gives {part} of what goes into a layer: give a layer after the first")
    third = PARTS.index(part)

    def read(pixels: Tensor) -> tuple[Tensor, Tensor]:
        patches, others = _output(network, pixels, number - 1, norm=False)
        tokens = torch.cat([others, patches.flatten(2).transpose(1, 2)], dim=1)
        tokens = project(block.norm1(tokens)).chunk(3, dim=2)[third]
        count = others.shape[1]
        return tokens[:, count:].transpose(1, 2).unflatten(2, patches.shape[2:]), tokens[:, :count]

    return read


def _output(network: Any, pixels: Tensor, layer: int, norm: bool) -> tuple[Tensor, Tensor]:
    # Not all transformers with a class token give it beside the patches, and convolutional networks have none.
    gives_others = "return_prefix_tokens" in signature(network.forward_intermediates).parameters
    options = {"return_prefix_tokens": True} if gives_others else {}
    found = network.forward_intermediates(
        pixels, indices=[layer], norm=norm, stop_early=True, intermediates_only=True, **options
    )[0]
    return found if gives_others else (found, found.new_zeros(len(found), 0, found.shape[1]))
