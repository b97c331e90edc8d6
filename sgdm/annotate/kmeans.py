"""Spherical k-means of features in memory, by FAISS."""

from __future__ import annotations

import faiss
import numpy as np


def spherical_kmeans(
    rows: np.ndarray,
    num_clusters: int,
    *,
    seed: int,
    iterations: int,
    starts: int = 1,
    start: np.ndarray | None = None,
) -> np.ndarray:
    """float32 [K, D], of unit length: centroids of float32 `rows` [n, D] of unit length, n >= K.

    The best of some random `starts`, or from centroids `start` [K, D]; on the GPU where FAISS has one. A centroid that
    loses all its rows is moved by FAISS to split a large cluster.
    """
    kmeans = faiss.Kmeans(
        rows.shape[1],
        num_clusters,
        niter=iterations,
        nredo=starts,
        seed=seed,
        spherical=True,
        gpu=faiss.get_num_gpus() > 0,
        min_points_per_centroid=1,  # few rows are the caller's choice; FAISS would only print a warning
        max_points_per_centroid=len(rows),  # the caller drew a sample already
    )
    kmeans.train(rows, init_centroids=start)
    return np.array(kmeans.centroids, np.float32)
