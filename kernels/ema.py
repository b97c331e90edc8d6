"""Exponential moving averages of weights, several at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def ema_update(averages: Sequence[Sequence[Tensor]], parameters: Sequence[Tensor], decays: Sequence[float]) -> None:
    """average <- decay * average + (1 - decay) * parameter, in place, for every (averages[i], decays[i]).

    Averages are float32: in bfloat16 a step of 1e-4 is lost to rounding and the average never moves. One call
    for all tensors of an average, so that a GPU is given few launches. No synchronisation with the host.
    ValueError where lengths, dtypes or decays do not fit.
    """
    if len(averages) != len(decays):
        raise ValueError(f"ema_update got {len(averages)} averages but {len(decays)} decays")
    current = [parameter.float() for parameter in parameters]
    for average, decay in zip(averages, decays, strict=True):
        _check(average, current, decay)
        torch._foreach_lerp_(list(average), current, 1.0 - decay)


def _check(average: Sequence[Tensor], parameters: Sequence[Tensor], decay: float) -> None:
    if not 0.0 <= decay <= 1.0:
        raise ValueError(f"the decay of a moving average lies in [0, 1], got {decay}")
    if len(average) != len(parameters):
        raise ValueError(f"an average has {len(average)} tensors, but there are {len(parameters)} parameters")
    for index, (mean, parameter) in enumerate(zip(average, parameters, strict=True)):
        if mean.dtype != torch.float32:
            raise ValueError(f"average {index} is {mean.dtype}; averages are kept in torch.float32")
        if mean.shape != parameter.shape:
            raise ValueError(f"average {index} has shape {list(mean.shape)}, its parameter {list(parameter.shape)}")
