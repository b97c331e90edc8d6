"""Passes over all images of a data set: shared by the processes of a run, and taken up again at the shard."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from engine import telemetry
from engine.config import Config
from engine.distributed import Ranks
from engine.info import versions
from sgdm.annotate.features import FEATURES, Encoder, FeatureManifest, FeatureSet, encode, load_features, save_features
from sgdm.annotate.sets import AnnotationError
from sgdm.annotate.shards import Shards
from sgdm.data.loader import Loader
from sgdm.progress import Advance

LARGEST_SHARD = 65_536
SHARDS_OF_A_SMALL_SET = 8
"""So that a few processes share it."""

Work = Callable[[Iterator[Tensor], range, Advance], Mapping[str, np.ndarray]]
"""What is made of the images of a shard, uint8 batches in order, which are these rows: arrays by name."""


def open_shards(config: Config, folder: Path, count: int, identity: Mapping[str, Any], ranks: Ranks) -> Shards:
    """The shards in a folder; those of another identity are deleted. ValueError where the set is smaller than one."""
    size = config.annotation.shard_images
    if size is None:
        size = min(LARGEST_SHARD, -(-count // SHARDS_OF_A_SMALL_SET))
    elif size > count:
        raise ValueError(
            f"annotation.shard_images is {size}, but there are only {count} images: give at most {count}, or no number"
        )
    shards = Shards(folder, count, size)
    if ranks.first:
        shards.begin(identity)
    ranks.wait()
    return shards


def fill_shards(name: str, shards: Shards, loader: Loader, ranks: Ranks, work: Work) -> None:
    """Makes the shards that are not there yet, each by one of the processes, and waits until all are."""
    missing = [number for number in range(len(shards)) if not shards.is_whole(number)]
    ranks.wait()  # all have looked before one writes
    own = missing[ranks.rank :: ranks.world_size]
    with telemetry.progress(name, sum(len(shards.rows(number)) for number in own), visible=ranks.first) as advance:
        for number in own:
            rows = shards.rows(number)
            images = (batch.image for batch in loader.select(np.arange(rows.start, rows.stop)))
            shards.save(number, work(images, rows, advance))
    ranks.wait()


def find_features(config: Config, loader: Loader, encoder: Encoder, ranks: Ranks) -> FeatureSet:
    """The features of all images: those on disk, or, where they are of other data or another encoder, new ones."""
    folder, data = config.features_folder, loader.manifest
    identity = {"data": data.digest, "weights": encoder.digest, "parameters": encoder.parameters}
    shards = open_shards(config, folder, len(loader), identity, ranks)
    try:
        return load_features(folder, data.digest)
    except AnnotationError:  # not yet whole
        ranks.wait()
    fill_shards(
        "annotate, features",
        shards,
        loader,
        ranks,
        lambda images, rows, advance: {FEATURES: encode(encoder, images, rows, advance)},
    )
    if ranks.first:
        manifest = FeatureManifest(
            data_digest=data.digest,
            encoder=encoder.name,
            weights_digest=encoder.digest,
            parameters=encoder.parameters,
            count=len(loader),
            dimension=encoder.dimension,
            shard_images=shards.shard_images,
            digest=shards.digest(),
            versions=versions(),
        )
        save_features(folder, manifest)
    ranks.wait()
    return load_features(folder, data.digest)
