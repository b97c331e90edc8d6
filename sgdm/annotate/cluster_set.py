"""A cluster set on disk: the clusters of all images of a data set, by arrays beside a manifest (sgdm.annotate.sets).

clusters.npy    int32 [N], 0 .. K-1
centroids.npy   float32 [K, D], of unit length; K 0 where the clusters are not those of features
nearest.npy     int64 [K, M], the images nearest to each centroid, the nearest first, -1 where there are fewer
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sgdm.annotate import clusters as clustering
from sgdm.annotate.sets import load_set, save_set


@dataclass(frozen=True)
class ClusterManifest:
    data_digest: str  # DataManifest.digest of the images
    method: str
    encoder: str  # empty where no encoder looked
    weights_digest: str  # Encoder.digest
    features_digest: str  # FeatureManifest.digest
    num_clusters: int
    seed: int
    parameters: dict[str, Any]  # whatever else the clustering was given and found on the way
    versions: dict[str, str]
    report: dict[str, Any]  # sizes, repairs, agreement with labels that nothing else uses


class ClusterSet(NamedTuple):
    manifest: ClusterManifest
    clusters: np.ndarray  # int32 [N]
    centroids: np.ndarray  # float32 [K, D]
    nearest: np.ndarray  # int64 [K, M]

    @property
    def frequencies(self) -> np.ndarray:
        """float64 [K], the share of images in each cluster: sampling draws cluster ids by it."""
        return clustering.frequencies(self.clusters, self.manifest.num_clusters)


def save_clusters(
    folder: Path, manifest: ClusterManifest, clusters: np.ndarray, centroids: np.ndarray, nearest: np.ndarray
) -> None:
    """Writes a whole set. ValueError where an id lies outside of 0 .. K-1."""
    if len(clusters) and not (clusters.min() >= 0 and clusters.max() < manifest.num_clusters):
        raise ValueError(
            f"cluster ids must lie within 0 to {manifest.num_clusters - 1}, found {clusters.min()} to {clusters.max()}"
        )
    save_set(
        folder,
        manifest,
        {
            "clusters": [clusters.astype(np.int32, copy=False)],
            "centroids": [centroids.astype(np.float32, copy=False)],
            "nearest": [nearest.astype(np.int64, copy=False)],
        },
    )


def load_clusters(folder: Path, data_digest: str) -> ClusterSet:
    """The cluster set in `folder`; AnnotationError where it is missing, damaged or of other images than those of
    `data_digest`."""
    manifest, arrays = load_set(folder, ClusterManifest, data_digest)
    return ClusterSet(manifest, np.array(arrays["clusters"]), arrays["centroids"], arrays["nearest"])
