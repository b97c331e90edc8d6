"""An annotation set on disk: features, clusters and centroids of one prepared data set, whole or absent.

manifest.json    AnnotationManifest, written last: without it there is no annotation set
features.npy     float16 [N, D]
clusters.npy     int32 [N]
centroids.npy    float32 [K, D]
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sgdm.annotate import clusters as clustering
from sgdm.annotate.clusters import Clusters
from sgdm.files import atomic_write, read_json, write_json

MANIFEST = "manifest.json"
FEATURES = "features.npy"
CLUSTERS = "clusters.npy"
CENTROIDS = "centroids.npy"


class AnnotationError(ValueError):
    """An annotation set is missing, damaged, or belongs to other data."""


@dataclass(frozen=True)
class AnnotationManifest:
    data_digest: str  # DataManifest.digest of the images that were annotated
    encoder: str
    weights_digest: str  # Encoder.digest
    num_clusters: int
    seed: int
    iterations: int
    parameters: dict[str, Any]  # whatever else the encoder and the clustering were given
    versions: dict[str, str]
    report: dict[str, Any]  # clusters.cluster_report


class Annotation(NamedTuple):
    manifest: AnnotationManifest
    clusters: np.ndarray  # int32 [N]
    centroids: np.ndarray  # float32 [K, D]
    features: np.ndarray  # float16 [N, D], a read-only memmap

    @property
    def frequencies(self) -> np.ndarray:
        """float64 [K], the share of images in each cluster."""
        return clustering.frequencies(self.clusters, self.manifest.num_clusters)


def begin_annotation(folder: Path) -> Path:
    """Forgets any set in `folder`, so that new features never meet old clusters; returns the features' path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    return folder / FEATURES


def save_annotation(folder: Path, manifest: AnnotationManifest, clusters: Clusters) -> None:
    """Writes clusters, centroids and, last, the manifest; the features are already there (begin_annotation).

    Interrupted at any moment, it leaves a folder without a manifest, which load_annotation refuses.
    """
    (folder / MANIFEST).unlink(missing_ok=True)
    _write_array(folder / CLUSTERS, clusters.ids)
    _write_array(folder / CENTROIDS, clusters.centroids)
    write_json(folder / MANIFEST, asdict(manifest))


def load_annotation(folder: Path, data_digest: str) -> Annotation:
    """The annotation set in `folder`; AnnotationError where it is missing, damaged or of other data.

    `data_digest` is the DataManifest.digest of the images that it is going to be used with.
    """
    manifest = _read_manifest(folder / MANIFEST)
    if manifest.data_digest != data_digest:
        raise AnnotationError(
            f"{folder} annotates the data set {manifest.data_digest}, but this one is {data_digest}: "
            f"annotate it again, or point at the data set that the annotation was made for"
        )
    features = _read_array(folder / FEATURES, np.float16, 2)
    clusters = _read_array(folder / CLUSTERS, np.int32, 1)
    centroids = _read_array(folder / CENTROIDS, np.float32, 2)
    if len(clusters) != len(features) or len(centroids) != manifest.num_clusters:
        raise AnnotationError(
            f"{folder} is damaged: {len(clusters)} cluster ids of {len(features)} features, {len(centroids)} "
            f"centroids of {manifest.num_clusters}. Annotate again"
        )
    if len(clusters) and not (clusters.min() >= 0 and clusters.max() < manifest.num_clusters):
        raise AnnotationError(
            f"{folder / CLUSTERS} is damaged: ids lie outside of 0 to {manifest.num_clusters - 1}. Annotate again"
        )
    return Annotation(manifest, np.array(clusters), np.array(centroids), features)


def _write_array(path: Path, array: np.ndarray) -> None:
    with atomic_write(path) as temporary:
        np.save(temporary, array, allow_pickle=False)


def _read_manifest(path: Path) -> AnnotationManifest:
    if not path.is_file():
        raise AnnotationError(f"{path} is missing: there is no whole annotation set there. Annotate first")
    found = read_json(path)
    names = {field.name for field in fields(AnnotationManifest)}
    if not isinstance(found, dict) or found.keys() != names:
        raise AnnotationError(f"{path} is damaged or of another version: it must hold {sorted(names)}. Annotate again")
    return AnnotationManifest(**found)


def _read_array(path: Path, dtype: type[np.generic], dimensions: int) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise AnnotationError(f"{path} is missing or damaged ({error}). Annotate again") from error
    if array.dtype != dtype or array.ndim != dimensions:
        raise AnnotationError(
            f"{path} is damaged: it holds {array.dtype} with {array.ndim} dimensions, not "
            f"{np.dtype(dtype)} with {dimensions}. Annotate again"
        )
    return array
