"""Clusters of features: spherical k-means by FAISS, and what is to be said about the result."""

from __future__ import annotations

from typing import Any, NamedTuple

import faiss
import numpy as np

from sgdm.progress import Advance, ignore

POINTS_PER_CENTROID = 256  # a larger sample moves centroids little and costs time in proportion (FAISS's default)
SMALLEST_SAMPLE = 65_536  # features: with few centroids a larger sample is cheap, and steadies them
FEW_CLUSTERS = 50  # up to here, local optima differ so much in purity that the best of several starts is kept
STARTS = 5
BLOCK = 65_536  # features in memory at a time


class Clusters(NamedTuple):
    ids: np.ndarray  # int32 [N], 0 .. K-1
    centroids: np.ndarray  # float32 [K, D], of unit length
    sample_size: int  # features that the centroids were fitted on
    objective: float  # mean cosine of a fitted feature with its centroid, of the best start


def fit_clusters(
    features: np.ndarray,
    num_clusters: int,
    *,
    seed: int,
    iterations: int = 30,
    advance: Advance = ignore,
) -> Clusters:
    """Spherical k-means of `features` (float16 or float32 [N, D], may be a memmap), on the GPU where FAISS has one.

    Features are brought to unit length both where centroids are fitted and where images are assigned, so an id
    is that of the centroid with the largest cosine. Centroids are fitted on a random sample of 256 features each,
    but at least 65,536 in all; one that loses all its features is moved by FAISS to split a large cluster. The same
    seed and number of threads give the same clusters. ValueError where K > N or a feature is zero or not finite.
    """
    count = len(features)
    if not 1 <= num_clusters <= count:
        raise ValueError(
            f"{num_clusters} clusters cannot be made of {count} images: choose num_clusters between 1 and {count}"
        )
    sample_size = min(count, max(num_clusters * POINTS_PER_CENTROID, SMALLEST_SAMPLE))
    sample = _normalised(features, _sample_rows(count, sample_size, seed))
    kmeans = faiss.Kmeans(
        features.shape[1],
        num_clusters,
        niter=iterations,
        nredo=STARTS if num_clusters <= FEW_CLUSTERS else 1,
        seed=seed,
        spherical=True,
        gpu=faiss.get_num_gpus() > 0,
        min_points_per_centroid=1,  # small clusters are the user's choice; FAISS would only print a warning
        max_points_per_centroid=sample_size,  # the sample is drawn already
    )
    objective = kmeans.train(sample) / len(sample)
    ids = np.empty(count, np.int32)
    for start in range(0, count, BLOCK):
        block = _normalised(features, np.arange(start, min(start + BLOCK, count)))
        ids[start : start + BLOCK] = kmeans.index.search(block, 1)[1][:, 0]
        advance(len(block))
    return Clusters(ids, np.array(kmeans.centroids, np.float32), len(sample), float(objective))


def frequencies(ids: np.ndarray, num_clusters: int) -> np.ndarray:
    """float64 [K], the share of images in each cluster: sampling draws cluster ids by it."""
    return np.bincount(ids, minlength=num_clusters) / len(ids)


def cluster_report(ids: np.ndarray, num_clusters: int, labels: np.ndarray | None = None) -> dict[str, Any]:
    """Sizes of clusters and, over images with a label >= 0, their agreement with labels.

    purity: the share of labelled images whose label is the commonest of their cluster. It grows with K: compare
    it at one K only. nmi: mutual information over the mean of both entropies (scikit-learn's default).
    """
    sizes = np.bincount(ids, minlength=num_clusters)
    report: dict[str, Any] = {
        "smallest": int(sizes.min()),
        "median": float(np.median(sizes)),
        "largest": int(sizes.max()),
        "empty": int((sizes == 0).sum()),
    }
    if labels is not None and (labels >= 0).any():
        labelled = labels >= 0
        table = _contingency(ids[labelled], labels[labelled], num_clusters)
        report["purity"] = float(table.max(axis=1).sum() / table.sum())
        report["nmi"] = _normalised_mutual_information(table)
        report["labelled"] = int(labelled.sum())
    return report


def _sample_rows(count: int, size: int, seed: int) -> np.ndarray:
    if size == count:
        return np.arange(count)
    # Sorted, so that a memmap on a disk is read in one sweep.
    return np.sort(np.random.default_rng(seed).choice(count, size, replace=False))


def _normalised(features: np.ndarray, rows: np.ndarray) -> np.ndarray:
    block = features[rows].astype(np.float32)
    length = np.linalg.norm(block, axis=1, keepdims=True)
    unusable = ~(np.isfinite(length) & (length > 0))[:, 0]
    if unusable.any():
        raise ValueError(
            f"{int(unusable.sum())} features are zero or not finite, the first that of image "
            f"{int(rows[unusable][0])}: extract the features again, and look at the encoder's weights"
        )
    return block / length


def _contingency(ids: np.ndarray, labels: np.ndarray, num_clusters: int) -> np.ndarray:
    """int64 [K, labels]: how many images of a cluster have a label."""
    num_labels = int(labels.max()) + 1
    flat = np.bincount(ids.astype(np.int64) * num_labels + labels, minlength=num_clusters * num_labels)
    return flat.reshape(num_clusters, num_labels)


def _normalised_mutual_information(table: np.ndarray) -> float:
    joint = table / table.sum()
    cluster, label = joint.sum(axis=1), joint.sum(axis=0)
    present = joint > 0
    mutual = (joint[present] * np.log(joint[present] / np.outer(cluster, label)[present])).sum()
    entropies = _entropy(cluster) + _entropy(label)
    return float(2 * mutual / entropies) if entropies > 0 else 1.0


def _entropy(probabilities: np.ndarray) -> float:
    positive = probabilities[probabilities > 0]
    return float(-(positive * np.log(positive)).sum())
