"""What the layers of a network are told besides the image: the time and the condition."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgdm.conditions import Condition
from sgdm.models.config import UNetConfig


class Embedded(NamedTuple):
    """What a network makes of a condition, the same at every time: a sampler makes it once for all its steps.

    A NamedTuple, so that torch.compile sees a plain tuple of tensors. A part that the network does not use is None.
    """

    vector: Tensor | None = None
    """[B, condition width], of cluster and attributes."""

    tokens: Tensor | None = None
    """[B, context_tokens * context_channels], of cluster and attributes, before they are normalised."""

    mask: Tensor | None = None
    """[B, M, H, W], the condition's own."""

    def towards(self, other: Embedded, share: Tensor) -> Embedded:
        """On the straight line to the embedding of another condition, at a share of the way, float32 [B]: at 0 this
        one and at 1 the other, to the bit."""
        return Embedded(*(_between(start, end, share) for start, end in zip(self, other, strict=True)))


class Guide(NamedTuple):
    """The embedded time and condition."""

    vector: Tensor
    """[B, guide width], for the residual blocks."""

    tokens: Tensor | None
    """[B, tokens, context_channels], for the attention layers; None where they only look at pixels."""


def sinusoidal(time: Tensor, channels: int, longest_period: float = 10_000.0) -> Tensor:
    """Cosines and sines of the time [B] at `channels` / 2 frequencies: [B, channels] float32.

    Frequencies fall geometrically from 1 to nearly 1 / `longest_period` (Vaswani et al., 2017, section 3.5).
    """
    half = channels // 2
    # Made here rather than stored: a buffer would be rounded where a network is cast to bfloat16.
    index = torch.arange(half, dtype=torch.float32, device=time.device)
    angles = time.float()[:, None] * torch.exp(index * (-math.log(longest_period) / half))
    return torch.cat((angles.cos(), angles.sin()), dim=1)


class ConditionProjection(nn.Module):
    """A linear layer on [one-hot cluster, multi-hot attributes], the cluster's part as a table look-up."""

    def __init__(self, config: UNetConfig, width: int) -> None:
        super().__init__()
        K = config.num_clusters
        self.cluster: nn.Embedding | None = None
        if K is not None:
            # Row K is the null condition. As padding it stays zero: it starts so and is given no gradient.
            self.cluster = nn.Embedding(K + 1, width, padding_idx=K if config.null_condition == "zero" else None)
        self.attributes: nn.Linear | None = None
        if config.num_attributes:
            self.attributes = nn.Linear(config.num_attributes, width, bias=False)
        self.bias = nn.Parameter(torch.empty(width))
        self._initialise((K or 0) + config.num_attributes)

    @torch.no_grad()
    def _initialise(self, fan_in: int) -> None:
        """Like torch's linear layer of the same inputs, but for the table of clusters.

        The released code starts that like a linear layer too, within 1 / sqrt(K): a condition so faint beside the time
        is hardly learned in a short run. Here it is standard normal, as torch's tables are.
        """
        bound = fan_in**-0.5
        for parameter in self.parameters():
            parameter.uniform_(-bound, bound)
        if self.cluster is not None:
            self.cluster.reset_parameters()  # leaves zeros in the row of a null condition that stays zero

    def forward(self, condition: Condition) -> Tensor:
        """[B, width]."""
        y = self.bias
        if self.cluster is not None:
            y = y + self.cluster(condition.cluster)
        if self.attributes is not None and condition.attributes is not None:
            y = y + self.attributes(condition.attributes.to(self.bias.dtype))
        return y


class Embedder(nn.Module):
    """Turns the time and the embedded condition into a `Guide`."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        C, time_width = config.channels, 4 * config.channels
        self.time = nn.Sequential(nn.Linear(C, time_width), nn.SiLU(), nn.Linear(time_width, time_width))
        self.width = time_width
        if config.has_vector_condition:
            width = time_width // 2 if config.condition_merge == "concatenate" else time_width
            self.condition = nn.Sequential(ConditionProjection(config, width), nn.SiLU(), nn.Linear(width, width))
            self.width += width if config.condition_merge == "concatenate" else 0
        if config.context_tokens:
            context_width = config.context_tokens * config.context_channels
            self.time_tokens = nn.Sequential(nn.Linear(C, C), nn.SiLU(), nn.Linear(C, context_width))
            if config.has_vector_condition:
                self.condition_tokens = ConditionProjection(config, context_width)
            self.token_norm = nn.LayerNorm(config.context_channels)

    def embed(self, condition: Condition | None) -> Embedded:
        """The part that does not depend on the time."""
        if not self.config.has_vector_condition:
            return Embedded(mask=None if condition is None else condition.mask)
        assert condition is not None, "the UNet has checked it"
        tokens = self.condition_tokens(condition) if self.config.context_tokens else None
        return Embedded(self.condition(condition), tokens, condition.mask)

    def forward(self, time: Tensor, embedded: Embedded) -> Guide:
        waves = sinusoidal(time, self.config.channels).to(self.time.get_parameter("0.weight").dtype)
        vector = self.time(waves)
        if embedded.vector is not None:
            if self.config.condition_merge == "concatenate":
                vector = torch.cat((vector, embedded.vector), dim=1)
            else:
                vector = vector + embedded.vector
        # Every residual block starts with this activation, so it is taken once.
        return Guide(F.silu(vector), self._tokens(waves, embedded.tokens) if self.config.context_tokens else None)

    def _tokens(self, waves: Tensor, of_condition: Tensor | None) -> Tensor:
        tokens = self.time_tokens(waves)
        if of_condition is not None:
            tokens = torch.cat((tokens, of_condition), dim=1)
        return self.token_norm(tokens.view(tokens.shape[0], -1, self.config.context_channels))


def _between(start: Tensor | None, end: Tensor | None, share: Tensor) -> Tensor | None:
    if start is None or end is None:
        return None
    share = share.view(-1, *[1] * (start.dim() - 1))
    return torch.lerp(start.float(), end.float(), share).to(start.dtype)
