"""Features of images: what an encoder is, and the features of all images on disk."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from sgdm.annotate.sets import AnnotationError, load_set, save_set
from sgdm.annotate.shards import Shards
from sgdm.progress import Advance, ignore

FEATURES = "features"


class Encoder(Protocol):
    """A frozen map from images to features."""

    name: str
    digest: str  # SHA-256 of what the map is made of
    dimension: int

    @property
    def parameters(self) -> dict[str, Any]:
        """What else decides the features; equal digests and parameters, equal features."""
        ...

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] on any device -> float32 [B, D] on the encoder's device."""
        ...


def encode(encoder: Encoder, batches: Iterable[Tensor], rows: range, advance: Advance = ignore) -> np.ndarray:
    """float16 [n, D]: the features of n images, uint8 batches [B, 3, H, W] in order, which are `rows` of the data set.

    ValueError names rows whose features are not finite in float16, and how many images are missing.
    """
    features = np.empty((len(rows), encoder.dimension), np.float16)
    done = 0
    for images in batches:
        block = encoder(images).half().cpu().numpy()
        finite = np.isfinite(block).all(axis=1)
        if not finite.all():
            raise ValueError(
                f"{encoder.name} gives features that are no finite float16 numbers for the images "
                f"{_some(rows[done] + np.flatnonzero(~finite))}: look at these images and at the weights"
            )
        features[done : done + len(block)] = block
        done += len(block)
        advance(len(block))
    if done != len(rows):
        raise ValueError(f"{done} images came to be encoded where the rows {rows[0]} to {rows[-1]} were to come")
    return features


@dataclass(frozen=True)
class FeatureManifest:
    data_digest: str  # DataManifest.digest of the images
    encoder: str
    weights_digest: str  # Encoder.digest
    parameters: dict[str, Any]  # Encoder.parameters
    count: int
    dimension: int
    shard_images: int
    digest: str  # of the content of all shards
    versions: dict[str, str]


class FeatureSet:
    """float16 [N, D] in shards. Rows are asked for by a slice or an ascending int64 array; no others are in memory."""

    def __init__(self, folder: Path, manifest: FeatureManifest) -> None:
        self.manifest = manifest
        self._shards = Shards(folder, manifest.count, manifest.shard_images)

    @property
    def shape(self) -> tuple[int, int]:
        return self.manifest.count, self.manifest.dimension

    def __len__(self) -> int:
        return self.manifest.count

    def content_digest(self) -> str:
        """What manifest.digest must be. AnnotationError where a shard is missing."""
        return self._shards.digest()

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """float16 [n, D]. AnnotationError where a shard is damaged."""
        wanted = np.arange(*rows.indices(len(self))) if isinstance(rows, slice) else rows
        size = self.manifest.shard_images
        ends = np.searchsorted(wanted, np.arange(0, self.manifest.count + size, size))
        parts = [
            self._shards.load(number)[FEATURES][wanted[first:last] - number * size]
            for number, (first, last) in enumerate(pairwise(ends))
            if last > first
        ]
        return np.concatenate(parts) if parts else np.empty((0, self.manifest.dimension), np.float16)


def save_features(folder: Path, manifest: FeatureManifest) -> None:
    """Makes a whole set of the shards in `folder`, all of which are there."""
    save_set(folder, manifest, {})


def load_features(folder: Path, data_digest: str) -> FeatureSet:
    """The features in `folder`; AnnotationError where they are missing, damaged or of other images than those of
    `data_digest`. Each shard is checked against its digest when it is first read."""
    manifest, _ = load_set(folder, FeatureManifest, data_digest)
    features = FeatureSet(folder, manifest)
    found = features.content_digest()
    if found != manifest.digest:
        raise AnnotationError(
            f"the shards in {folder} have the digest {found}, its manifest says {manifest.digest}: delete the folder "
            "and annotate again"
        )
    return features


def _some(numbers: np.ndarray) -> str:
    return ", ".join(str(number) for number in numbers[:5]) + (" ..." if len(numbers) > 5 else "")
