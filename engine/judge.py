"""Measures numbered images against real ones: features of batches as they come, sums of them over all processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed
from numpy.typing import NDArray
from torch import Tensor

from engine.batches import Batches, share
from engine.config import Config
from engine.distributed import Ranks
from engine.reference import Reference, open_reference
from sgdm.metrics.evaluate import evaluate
from sgdm.metrics.frechet import Moments, check_linear_algebra
from sgdm.metrics.networks import FeatureNetwork, TimmBackbone, load_network
from sgdm.metrics.replicas import find_replicas
from sgdm.metrics.statistics import Statistics
from sgdm.progress import Advance

PICTURES = 64
"""The first so many images of a point are kept, to be looked at."""

Images = Callable[[NDArray[np.int64]], Tensor]
"""The images of these numbers, uint8 [n, 3, H, W]; the same whoever asks."""


class Judge:
    """Feature networks, and what they see in the real images."""

    def __init__(self, config: Config, ranks: Ranks) -> None:
        """Every process makes one. NumericalError where this machine's linear algebra is at fault; ValueError where
        weights, images or cached statistics are missing or of others."""
        check_linear_algebra()
        self._config, self._ranks = config, ranks
        evaluation = config.evaluation
        self.network = load_network(evaluation.network, evaluation.weights, ranks.device)
        self.backbone: FeatureNetwork | None = None
        if evaluation.backbone is not None:
            self.backbone = TimmBackbone(evaluation.backbone, evaluation.backbone_weights, ranks.device)
        self.reference: Reference = open_reference(config, self.networks, ranks)

    @property
    def networks(self) -> list[FeatureNetwork]:
        return [self.network] if self.backbone is None else [self.network, self.backbone]

    @property
    def identity(self) -> dict[str, Any]:
        """What decides a measurement beside the images."""
        return {
            "networks": [network.name for network in self.networks],
            "reference": self.reference.identity,
            "replicas": self._config.evaluation.replicas,
            "seed": self._config.seed,
        }

    def replicas_of_unseen(self) -> float | None:
        """The share of replicas among real images that were not trained on, which is what samples are to be read
        beside; on the first process, where they are looked for and there is a val split."""
        training = self.reference.training_features
        if training is None or self.reference.split == "train":
            return None
        return find_replicas(training, self.reference.statistics[-1].pool).share

    def measure(
        self,
        batches: Batches,
        images: Images,
        batch_size: int,
        advance: Advance,
        tell: Callable[[NDArray[np.int64]], dict[str, NDArray[Any]]] | None = None,
    ) -> dict[str, float | None]:
        """All metrics of the images of `batches`, which hold what an earlier attempt has come to, on the first process;
        nothing on the others, whose part is the work.

        `batches` come to hold features, and the first images. With `tell`, which is what else to write of images of
        these numbers, they hold all images.
        """
        if self._ranks.first:
            batches.begin()
        self._ranks.wait()
        there, missing = batches.files(), batches.missing()
        self._ranks.wait()  # all have looked before one writes
        sums = [_Sums(network, self._ranks.device) for network in self.networks]
        for path in there[self._ranks.rank :: self._ranks.world_size]:
            found = batches.load(path)
            for number, one in enumerate(sums):
                one.add_stored(found, number)
        advance(batches.count - len(missing))
        for numbers in share(missing, batch_size, self._ranks.rank, self._ranks.world_size):
            pixels = images(numbers)
            arrays: dict[str, NDArray[Any]] = {}
            for number, one in enumerate(sums):
                arrays |= one.add(pixels, number)
            shown = pixels if tell else pixels[: int((numbers < PICTURES).sum())]
            arrays |= {"image": shown.permute(0, 2, 3, 1).cpu().numpy(), **(tell(numbers) if tell else {})}
            batches.write(numbers, arrays)
            advance(len(numbers) * self._ranks.world_size)
        for one in sums:
            one.reduce(self._ranks)
        self._ranks.wait()
        return self._metrics(batches, sums) if self._ranks.first else {}

    def _metrics(self, batches: Batches, sums: list[_Sums]) -> dict[str, float | None]:
        seen = [one.statistics(batches, number) for number, one in enumerate(sums)]
        real = self.reference.statistics
        found = evaluate(real[0], seen[0], seed=self._config.seed)
        if self.backbone is not None:
            found["backbone_frechet_distance"] = evaluate(real[1], seen[1], seed=self._config.seed)["frechet_distance"]
        if self.reference.training_features is not None:
            found["replica_share"] = find_replicas(self.reference.training_features, seen[-1].pool).share
        return found


class _Sums:
    """What one network has seen of a set of images in this process."""

    def __init__(self, network: FeatureNetwork, device: torch.device) -> None:
        self._network, self._device = network, device
        self.pool = Moments(network.dimension, device)
        self.spatial = Moments(network.spatial_dimension, device) if network.spatial_dimension else None

    def add(self, images: Tensor, number: int) -> dict[str, NDArray[Any]]:
        """Adds a batch; returns its features, by names that tell the networks apart."""
        features = self._network(images)
        self.pool.add(features.pool)
        if self.spatial is not None:
            assert features.spatial is not None
            self.spatial.add(features.spatial)
        parts = features._asdict().items()
        return {f"{name}_{number}": part.cpu().numpy() for name, part in parts if part is not None}

    def add_stored(self, arrays: dict[str, NDArray[Any]], number: int) -> None:
        self.pool.add(torch.from_numpy(arrays[f"pool_{number}"]).to(self._device))
        if self.spatial is not None:
            self.spatial.add(torch.from_numpy(arrays[f"spatial_{number}"]).to(self._device))

    def reduce(self, ranks: Ranks) -> None:
        """Sums over all processes, once."""
        if ranks.world_size == 1:
            return
        for moments in (self.pool, self.spatial):
            if moments is not None:
                moments.reduce(torch.distributed.all_reduce)

    def statistics(self, batches: Batches, number: int) -> Statistics:
        assert self.pool.count == batches.count, f"{self.pool.count} of {batches.count} images were counted"
        pool = batches.gather(f"pool_{number}")
        logits = batches.gather(f"logits_{number}") if self._network.num_classes else None
        return Statistics(self.pool, self.spatial, pool, logits)
