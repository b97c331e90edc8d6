"""What an objective is: a network that learns, and everything else that learning needs to go on."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from sgdm.annotate.selfsup.networks import TrainedNetwork


class Learner(nn.Module, ABC):
    """All that changes in training is state of this module, so that a checkpoint of it is whole."""

    encoder: TrainedNetwork  # what is kept of it
    rounds: int = 1  # of rising and falling learning rates
    momentum: float = 0.9

    @property
    def learning_rate(self) -> float:
        return self.encoder.learning_rate

    @abstractmethod
    def loss(self, rows: Tensor, images: Tensor, generator: torch.Generator) -> Tensor:
        """The loss of float `images` [B, 3, 32, 32] in [-1, 1], which are the `rows` (int64 [B]) of the sample."""

    def after_step(self, step: int) -> None:
        """What changes after the gradient's step, if anything does."""
