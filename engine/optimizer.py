"""AdamW that clips, and leaves out steps of gradients that are not finite, without asking the device for anything."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


class GuardedAdamW(torch.optim.AdamW):
    """torch's fused AdamW with one norm of all gradients a step, on the device.

    Its kernels divide gradients by a number and skip the update at a flag, as mixed precision with fp16 needs: here
    the number clips, and the flag is raised where the norm is not finite. Weights, moments and step count then stay.
    """

    gradient_norm: Tensor
    """float32 scalar, of the last step, before clipping."""

    skipped: Tensor
    """bool scalar: whether the last step was left out."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        learning_rate: float,
        weight_decay: float,
        gradient_clip: float,
        sum_over_shards: Callable[[Tensor], None] | None,
    ) -> None:
        """gradient_clip: largest norm, 0 for none. sum_over_shards adds up a scalar over the processes, in place, where
        each holds a part of the gradient; None where each holds the whole."""
        super().__init__(parameters, lr=learning_rate, weight_decay=weight_decay, fused=True)
        self._gradient_clip, self._sum_over_shards = gradient_clip, sum_over_shards

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        squares = torch.stack(torch._foreach_norm(gradients)).square().sum()
        if self._sum_over_shards is not None:
            self._sum_over_shards(squares)
        self.gradient_norm = squares.sqrt()
        self.skipped = ~self.gradient_norm.isfinite()
        self.found_inf = self.skipped.float()
        if self._gradient_clip:
            self.grad_scale = (self.gradient_norm / self._gradient_clip).clamp(min=1.0)
        super().step(closure)
