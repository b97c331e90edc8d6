"""What a sampler sees of a trained network: an estimate of the clean image at any noise level."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

Network = Callable[[Tensor, Tensor, Any], Tensor]
"""network(x [B, C, H, W], time float32 [B], condition) -> [B, C, H, W]; its objective says what time is. The condition
is a Condition, what the network has made of one, or None."""


class Level(NamedTuple):
    """What a network is told of a noise level, and how its prediction is read there: tensors without dimensions.

    The names are those of Karras et al. (2206.00364, equation 7): D(x) = c_skip x + c_out F(c_in x).
    """

    input_scale: Tensor
    """c_in."""

    time: Tensor

    skip_scale: Tensor
    """c_skip."""

    output_scale: Tensor
    """c_out."""


def estimate(network: Network, x: Tensor, level: Level, condition: Any) -> Tensor:
    """The clean image in x = image + sigma * noise (variance exploding coordinates), as `x` float [B, C, H, W].

    It is linear in the predicted noise, and not clipped yet: what guidance combines.
    """
    time = level.time.to(torch.float32).expand(len(x))
    prediction = network(level.input_scale * x, time, condition)
    return level.skip_scale * x + level.output_scale * prediction.to(x.dtype)
