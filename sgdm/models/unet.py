"""The UNet: from a noisy image, a time and a condition to a prediction of the same shape."""

from __future__ import annotations

from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sgdm.conditions import Condition
from sgdm.models.config import UNetConfig
from sgdm.models.embedding import Embedded, Embedder, Guide
from sgdm.models.layers import (
    Backends,
    ContextAttention,
    Downsample,
    GroupNorm,
    ResidualBlock,
    SelfAttention,
    Upsample,
    convolution,
    zeroed,
)
from sgdm.models.pretrained import Pretrained


class UNet(Pretrained):
    """The network of Self-Guided Diffusion Models (arXiv 2210.06462) and, by configuration, the ADM family.

    network(x, time, condition): x float [B, in_channels, H, W], time float32 [B] in units of the sinusoidal
    embedding, condition as the configuration says, None for a network without one, or what `embed` made of it.
    Returns [B, out_channels, H, W] in the dtype of x and channels_last memory; zeros before any training.
    x is cast to the dtype of the weights, so weights in bfloat16 and torch.autocast both work.
    Static shapes and no synchronisation with the host: compiles as one graph. ValueError where an argument
    does not fit the configuration; cluster ids are not checked, since that would wait for the device.
    """

    keeps_activations = True
    """Set to False, a training step keeps only what enters each stage, and computes the rest again on the way back."""

    def __init__(self, config: UNetConfig, backends: Backends = Backends()) -> None:
        super().__init__()
        self.config, self.backends = config, backends
        self.embedder = Embedder(config)
        pixels = config.patch_size**2
        self.input = convolution(pixels * (config.in_channels + config.mask_channels), config.channels)
        self.encoder, skip_widths = self._build_encoder()
        innermost = config.widths[-1]
        self.middle = Stage(
            self._residual(innermost, innermost),
            self._attention(innermost),
            self._residual(innermost, innermost),
        )
        self.decoder = self._build_decoder(skip_widths)
        self.output_norm = GroupNorm(config.widths[0], backends)
        self.output = zeroed(convolution(config.widths[0], pixels * config.out_channels))

    def embed(self, condition: Condition) -> Embedded:
        """What `forward` takes in place of the condition, at any time: whoever calls it often makes it once."""
        self._check_condition(condition, next((len(part) for part in condition if part is not None), 0))
        return self.embedder.embed(condition)

    def forward(self, x: Tensor, time: Tensor, condition: Condition | Embedded | None = None) -> Tensor:
        self._check(x, time)
        if isinstance(condition, Embedded):
            embedded = condition
        else:
            self._check_condition(condition, x.shape[0])
            embedded = self.embedder.embed(condition)
        config, dtype = self.config, x.dtype
        if embedded.mask is not None:
            x = torch.cat((x, embedded.mask.to(x.dtype)), dim=1)
        x = F.pixel_unshuffle(x, config.patch_size)
        x = x.to(self.input.weight.dtype, memory_format=torch.channels_last)
        guide = self.embedder(time, embedded)

        x = self.input(x)
        skips = [x]
        for stage in self.encoder:
            x = self._run(stage, x, guide)
            skips.append(x)
        x = self._run(self.middle, x, guide)
        for stage in self.decoder:
            x = self._run(stage, torch.cat((x, skips.pop()), dim=1), guide)
        y = F.pixel_shuffle(self.output(self.output_norm(x)), config.patch_size)
        return y.to(dtype, memory_format=torch.channels_last)

    def _run(self, stage: nn.Module, x: Tensor, guide: Guide) -> Tensor:
        if self.keeps_activations or not torch.is_grad_enabled():
            return cast(Tensor, stage(x, guide))
        return cast(Tensor, checkpoint(stage, x, guide, use_reentrant=False))

    def _build_encoder(self) -> tuple[nn.ModuleList, list[int]]:
        """The stages on the way down, and the channels of every skip connection, the input's first."""
        config = self.config
        stages, width = nn.ModuleList(), config.channels
        skip_widths = [width]
        for level, level_width in enumerate(config.widths):
            for _ in range(config.residual_blocks):
                stages.append(Stage(self._residual(width, level_width), *self._attention_at(level)))
                width = level_width
                skip_widths.append(width)
            if level < len(config.widths) - 1:
                stages.append(Stage(self._downsample(width)))
                skip_widths.append(width)
        return stages, skip_widths

    def _build_decoder(self, skip_widths: list[int]) -> nn.ModuleList:
        """The stages on the way up. Each takes one skip connection, the last made first."""
        config = self.config
        stages, width = nn.ModuleList(), config.widths[-1]
        skips = iter(reversed(skip_widths))
        for level, level_width in reversed(list(enumerate(config.widths))):
            for block in range(config.residual_blocks + 1):
                layers = [self._residual(width + next(skips), level_width), *self._attention_at(level)]
                if level > 0 and block == config.residual_blocks:
                    layers.append(self._upsample(level_width))
                stages.append(Stage(*layers))
                width = level_width
        return stages

    def _residual(
        self, in_channels: int, out_channels: int, resample: Literal["halve", "double"] | None = None
    ) -> ResidualBlock:
        config = self.config
        return ResidualBlock(
            in_channels, out_channels, self.embedder.width, config.dropout, config.scale_shift, self.backends, resample
        )

    def _attention(self, width: int) -> SelfAttention | ContextAttention:
        config = self.config
        if config.context_tokens:
            return ContextAttention(width, config.heads_of(width), config.context_channels, self.backends)
        return SelfAttention(width, config.heads_of(width), self.backends)

    def _attention_at(self, level: int) -> list[nn.Module]:
        if self.config.downsamples[level] not in self.config.attention_downsamples:
            return []
        return [self._attention(self.config.widths[level])]

    def _downsample(self, width: int) -> nn.Module:
        return self._residual(width, width, "halve") if self.config.resample_in_block else Downsample(width)

    def _upsample(self, width: int) -> nn.Module:
        return self._residual(width, width, "double") if self.config.resample_in_block else Upsample(width)

    def _check(self, x: Tensor, time: Tensor) -> None:
        B, size = x.shape[0], self.config.image_size
        _check_shape("x", x, (B, self.config.in_channels, size, size))
        _check_shape("time", time, (B,))

    def _check_condition(self, condition: Condition | None, B: int) -> None:
        config, size = self.config, self.config.image_size
        parts = condition if condition is not None else Condition()
        for name, part, shape, guided in (
            ("cluster", parts.cluster, (B,), config.num_clusters is not None),
            ("attributes", parts.attributes, (B, config.num_attributes), config.num_attributes > 0),
            ("mask", parts.mask, (B, config.mask_channels, size, size), config.mask_channels > 0),
        ):
            if guided and part is None:
                raise ValueError(f"this network is guided by {name}; give it a Condition with {name}")
            if part is not None and not guided:
                raise ValueError(f"this network is not guided by {name}; give it a Condition without {name}")
            if part is not None:
                _check_shape(f"condition.{name}", part, shape)


class Stage(nn.Module):
    """Layers of one resolution that run one after the other."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, guide: Guide) -> Tensor:
        for layer in self.layers:
            x = layer(x, guide)
        return x


def _check_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} has shape {list(tensor.shape)}; this network takes {list(shape)}")
