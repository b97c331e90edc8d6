"""The real images that samples are compared with, and what feature networks see in them, kept on disk.

DATA/statistics/<split>-<digest>.npz: statistics of a split by one network (sgdm/metrics/statistics.py);
DATA/statistics/features-<digest>/: features of all training images, for the search for replicas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine import telemetry
from engine.config import Config
from engine.distributed import Ranks, gather
from engine.extraction import fill_shards, open_shards
from engine.sampling_config import SMALLEST_SET
from engine.sums import Sums
from sgdm.annotate.features import encode
from sgdm.data.loader import Loader
from sgdm.data.sources import Split
from sgdm.files import fingerprint
from sgdm.metrics.networks import FeatureNetwork
from sgdm.metrics.statistics import Statistics

KEPT = 10_000
"""Real images whose own features are kept, for metrics that compare images one by one."""


@dataclass(frozen=True)
class Reference:
    train: Loader
    split: Split
    images: int
    identity: dict[str, Any]
    statistics: list[Statistics]
    """Of every network; on the first process alone."""
    floor: NDArray[np.int64]
    """Rows of training images that are not in the reference: as many as samples, or none."""
    training_features: NDArray[np.float16] | None
    """Of all training images [N, D] by the last network, where replicas are looked for; on the first process alone."""


def open_split(config: Config, split: str, device: torch.device) -> Loader:
    path = config.data.folder / f"{split}.beton"
    return Loader(path, batch_size=config.evaluation.batch_size, device=device, seed=config.seed)


def open_reference(config: Config, networks: Sequence[FeatureNetwork], ranks: Ranks) -> Reference:
    """The split of evaluation.reference as every network sees it: read where it is there, else made by all processes
    together. StatisticsError where what is there is of other images or another network."""
    train = open_split(config, "train", ranks.device)
    loader = train
    split: Split = "train"
    if config.evaluation.reference == "val":
        if (config.data.folder / "val.beton").exists():
            loader, split = open_split(config, "val", ranks.device), "val"
        elif ranks.first:
            telemetry.say("evaluate: there is no val split; the reference is training images")
    rows, floor = choose_real_images(config, train, loader)
    identity = {
        "data": loader.manifest.digest,
        "split": split,
        "images": len(rows),
        # It chooses the images, and among them those whose own features are kept.
        "seed": None if len(rows) == len(loader) <= KEPT else config.seed,
    }
    statistics = [_statistics(config, network, loader, rows, identity, ranks) for network in networks]
    training_features = None
    if config.evaluation.replicas:
        training_features = _training_features(config, networks[-1], train, ranks)
    return Reference(
        train,
        split,
        len(rows),
        identity,
        [one for one in statistics if one is not None],
        floor,
        training_features,
    )


def choose_real_images(config: Config, train: Loader, reference: Loader) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of the reference, in random order, and rows of other, training images that give the floor of the metrics, as
    many as samples.

    Where the training images are the reference, what is left of them gives the floor, if that is enough to measure."""
    order = np.random.default_rng(config.seed).permutation(len(reference))
    rows = order[: config.evaluation.reference_images]
    others = order[len(rows) :] if reference is train else np.random.default_rng(config.seed).permutation(len(train))
    floor = others[: config.sampling.images]
    return rows, np.sort(floor) if len(floor) >= SMALLEST_SET else floor[:0]


def _statistics(
    config: Config,
    network: FeatureNetwork,
    loader: Loader,
    rows: NDArray[np.int64],
    identity: dict[str, Any],
    ranks: Ranks,
) -> Statistics | None:
    identity = {**identity, "network": network.name}
    path = config.data.folder / "statistics" / f"{identity['split']}-{fingerprint(identity)[:8]}.npz"
    there = path.is_file()
    ranks.wait()  # all have looked before one writes
    if not there:
        _make(config, network, loader, rows, identity, path, ranks)
    return Statistics.load(path, identity, ranks.device) if ranks.first else None


def _make(
    config: Config,
    network: FeatureNetwork,
    loader: Loader,
    rows: NDArray[np.int64],
    identity: dict[str, Any],
    path: Path,
    ranks: Ranks,
) -> None:
    """Every process looks at its part of the rows; sums are added up, the features of the first rows put together."""
    sums = Sums(network, config.evaluation.batch_size, ranks.device)
    kept = min(KEPT, len(rows))
    part = torch.zeros(-(-kept // ranks.world_size), network.dimension)
    own, done, told = rows[ranks.rank :: ranks.world_size], 0, 0
    with telemetry.progress(f"evaluate, {identity['split']} images", len(rows), visible=ranks.first) as advance:
        for batch in loader.select(own):
            features = sums.add(batch.image)
            if done < len(part):
                part[done : done + len(features.pool)] = features.pool[: len(part) - done].cpu()
            done += len(features.pool)
            advance(min(len(rows) - told, len(features.pool) * ranks.world_size))
            told = min(len(rows), told + len(features.pool) * ranks.world_size)
    sums.reduce(ranks)
    features_kept = gather(part, ranks)[:kept].numpy()
    if ranks.first:
        Statistics(sums.pool, sums.spatial, features_kept, None).save(path, identity)
    ranks.wait()


class _PoolEncoder:
    """A feature network as what features are extracted with."""

    def __init__(self, network: FeatureNetwork) -> None:
        self.network, self.name, self.digest, self.dimension = network, network.name, network.name, network.dimension

    @property
    def parameters(self) -> dict[str, Any]:
        return {}

    def __call__(self, images: Tensor) -> Tensor:
        return self.network(images).pool


def _training_features(
    config: Config, network: FeatureNetwork, train: Loader, ranks: Ranks
) -> NDArray[np.float16] | None:
    identity = {"data": train.manifest.digest, "network": network.name}
    folder = config.data.folder / "statistics" / f"features-{fingerprint(identity)[:8]}"
    shards = open_shards(config, folder, len(train), identity, ranks)
    encoder = _PoolEncoder(network)
    fill_shards(
        "evaluate, training images",
        shards,
        train,
        ranks,
        lambda images, rows, advance: {"features": encode(encoder, images, rows, advance)},
    )
    if not ranks.first:
        return None
    return np.concatenate([shards.load(number)["features"] for number in range(len(shards))])
