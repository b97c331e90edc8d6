"""What guides a run: the clusters and the layouts of its images, and the digests that tell them from others."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from engine.config import Config
from sgdm.annotate.cluster_set import load_clusters
from sgdm.annotate.layout import load_layout
from sgdm.data.guides import Guides
from sgdm.ragged import Boxes, Polygons, RunLengths


class Guidance(NamedTuple):
    clusters: NDArray[np.int32] | None
    """The cluster id of each training image, [N]; None where clusters do not guide."""

    frequencies: NDArray[np.float64] | None
    """Each cluster's share of the training images, [K]."""

    layout: Boxes | RunLengths | None
    """Boxes or segments of each training image; None where layouts do not guide."""

    trained_on: dict[str, str | None]
    """Digests of the images and of what guides them: a checkpoint that goes on with other ones is silently wrong."""


def load_guidance(config: Config, data_digest: str) -> Guidance:
    """ValueError where the annotation is missing, damaged or of other images."""
    clusters = frequencies = layout = None
    if config.annotation.num_clusters:
        found = load_clusters(config.clusters_folder, data_digest)
        clusters, frequencies = found.clusters, found.frequencies
    if config.annotation.layout != "none":
        layout = load_layout(config.layout_folder, data_digest).objects
    trained_on = {
        "data": data_digest,
        "clusters": None if clusters is None else _digest(clusters.astype(np.int64)),
        "layout": None if layout is None else _digest(*_arrays(layout)),
    }
    return Guidance(clusters, frequencies, layout, trained_on)


def make_guides(
    config: Config,
    clusters: NDArray[np.integer] | None,
    layout: Boxes | Polygons | RunLengths | None,
    device: torch.device,
) -> Guides:
    """Guides as the run's network takes them."""
    return Guides(clusters, layout, image_size=config.data.image_size, num_segments=config.segments, device=device)


def _arrays(layout: Boxes | RunLengths) -> list[np.ndarray]:
    if isinstance(layout, Boxes):
        return [layout.corners, layout.image_offsets]
    return [layout.values, layout.offsets, layout.image_offsets, layout.class_ids]


def _digest(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
