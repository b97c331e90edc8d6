"""How far results are from the truth, next to how far eager PyTorch in the same dtype is."""

from __future__ import annotations

import math
import sys
from typing import NamedTuple

import torch
from torch import Tensor


class Errors(NamedTuple):
    """Distances of a result from float64 truth. All but the cosine are relative to the truth's own size."""

    norm: float
    """|actual - exact| / |exact|, Euclidean."""

    angle: float
    """1 - cosine between the two."""

    bias: float
    """|mean(actual - exact)| / root mean square of the truth: what does not average out over a training run."""

    largest: float
    """The largest elementwise distance, by the largest element of the truth."""


def errors(actual: Tensor, exact: Tensor) -> Errors:
    actual, exact = actual.detach().double().flatten(), exact.detach().double().flatten()
    distance, size = actual - exact, exact.norm().clamp_min(1e-300)
    return Errors(
        norm=float(distance.norm() / size),
        angle=float(1 - torch.nn.functional.cosine_similarity(actual, exact, dim=0, eps=1e-300)),
        bias=float(distance.mean().abs() / (size / exact.numel() ** 0.5)),
        largest=float(distance.abs().max() / exact.abs().max().clamp_min(1e-300)),
    )


def assert_as_good_as(actual: Tensor, eager: Tensor, exact: Tensor, name: str) -> None:
    """Every error of `actual` is at most twice that of `eager`, plus one unit in the last place of their dtype. Where
    eager overflows, as float16 far from zero does, a finite result will do."""
    assert actual.dtype == eager.dtype and actual.shape == eager.shape
    ulp = torch.finfo(actual.dtype).eps
    ours, theirs = errors(actual, exact), errors(eager, exact)
    for field, our, their in zip(Errors._fields, ours, theirs, strict=True):
        bound = 2 * their + ulp if math.isfinite(their) else sys.float_info.max
        assert our <= bound, f"{name}: {field} {our:.3g}, eager {their:.3g}, one ulp {ulp:.3g}"
