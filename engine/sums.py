"""What one feature network has seen of a set of images, over all processes."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed
from numpy.typing import NDArray
from torch import Tensor

from engine.distributed import Ranks
from sgdm.metrics.frechet import Moments
from sgdm.metrics.networks import FeatureNetwork, Features


class Sums:
    """float64 sums of features of one process, until `reduce` makes them those of all."""

    def __init__(self, network: FeatureNetwork, batch_size: int, device: torch.device) -> None:
        """`batch_size`: images a forward pass."""
        self.network, self._batch_size, self._device = network, batch_size, device
        self.pool = Moments(network.dimension, device)
        self.spatial = Moments(network.spatial_dimension, device) if network.spatial_dimension else None

    def add(self, images: Tensor) -> Features:
        """Adds images uint8 [B, 3, H, W], and returns their features."""
        parts = [self.network(part) for part in images.split(self._batch_size)]
        pool, logits, spatial = (
            None if together[0] is None else torch.cat(together) for together in zip(*parts, strict=True)
        )
        assert pool is not None
        self._count(pool, spatial)
        return Features(pool, logits, spatial)

    def add_stored(self, pool: NDArray[Any], spatial: NDArray[Any] | None) -> None:
        """Adds features that `add` has returned before."""
        on_device = [None if part is None else torch.from_numpy(part).to(self._device) for part in (pool, spatial)]
        assert on_device[0] is not None
        self._count(on_device[0], on_device[1])

    def reduce(self, ranks: Ranks) -> None:
        """Sums over all processes, once; all of them call it."""
        if ranks.world_size > 1:
            for moments in (self.pool, self.spatial):
                if moments is not None:
                    moments.reduce(torch.distributed.all_reduce)

    def _count(self, pool: Tensor, spatial: Tensor | None) -> None:
        self.pool.add(pool)
        if self.spatial is not None:
            assert spatial is not None
            self.spatial.add(spatial)
