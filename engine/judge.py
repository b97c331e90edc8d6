"""Measures numbered images against real ones: features of batches as they come, sums of them over all processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from engine import telemetry
from engine.batches import Batches, share
from engine.config import Config
from engine.distributed import Ranks
from engine.reference import Reference, open_reference
from engine.sums import Sums
from sgdm.metrics.evaluate import distance, evaluate, singular
from sgdm.metrics.frechet import check_linear_algebra
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
        batch = self._config.evaluation.batch_size
        sums = [Sums(network, batch, self._ranks.device) for network in self.networks]
        for path in there[self._ranks.rank :: self._ranks.world_size]:
            stored = batches.load(path)
            for number, one in enumerate(sums):
                one.add_stored(stored[f"pool_{number}"], stored.get(f"spatial_{number}"))
        advance(batches.count - len(missing))
        for numbers, together in share(missing, batch_size, self._ranks.rank, self._ranks.world_size):
            pixels = images(numbers)
            arrays: dict[str, NDArray[Any]] = {}
            for number, one in enumerate(sums):
                parts = one.add(pixels)._asdict().items()
                arrays |= {f"{name}_{number}": part.cpu().numpy() for name, part in parts if part is not None}
            shown = pixels if tell else pixels[: int((numbers < PICTURES).sum())]
            arrays |= {"image": shown.permute(0, 2, 3, 1).cpu().numpy(), **(tell(numbers) if tell else {})}
            batches.write(numbers, arrays)
            advance(together)
        for one in sums:
            one.reduce(self._ranks)
        self._ranks.wait()
        return self._metrics(batches, sums) if self._ranks.first else {}

    def _metrics(self, batches: Batches, sums: list[Sums]) -> dict[str, float | None]:
        seen = [self._statistics(batches, one, number) for number, one in enumerate(sums)]
        real = self.reference.statistics
        found = evaluate(real[0], seen[0], seed=self._config.seed)
        if self.backbone is not None:
            found["backbone_frechet_distance"] = distance(real[1].moments, seen[1].moments)
        if self.reference.training_features is not None:
            found["replica_share"] = find_replicas(self.reference.training_features, seen[-1].pool).share
        return found

    def _statistics(self, batches: Batches, sums: Sums, number: int) -> Statistics:
        assert sums.pool.count == batches.count, f"{sums.pool.count} of {batches.count} images were counted"
        logits = batches.gather(f"logits_{number}") if sums.network.num_classes else None
        return Statistics(sums.pool, sums.spatial, batches.gather(f"pool_{number}"), logits)

    @property
    def left_out(self) -> dict[str, str]:
        """Metrics that cannot be had of these real images, and why; on the first process."""
        names = ("frechet_distance", "backbone_frechet_distance")
        why = {name: singular(one) for name, one in zip(names, self.reference.statistics, strict=False)}
        return {name: reason for name, reason in why.items() if reason is not None}

    def say_what_is_left_out(self) -> None:
        for name, why in self.left_out.items():
            telemetry.say(f"evaluate: {name}: {why}")
