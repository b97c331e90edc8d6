"""Clusters of features: spherical k-means by FAISS, fitted on a sample, all images assigned in blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from sgdm.annotate.assignment import Assignment, assign, inner_product_index
from sgdm.annotate.feature_rows import Features, sample_rows, unit_rows
from sgdm.annotate.kmeans import spherical_kmeans
from sgdm.annotate.repair import ROUNDS, is_tiny, replace_tiny
from sgdm.progress import Advance, ignore

ITERATIONS = 30
SMALLEST_SAMPLE = 65_536
"""Features: with few centroids a larger sample is cheap, and steadies them."""

POINTS_PER_CENTROID = 256
"""A larger sample moves centroids little and costs time in proportion (FAISS's default)."""

LARGE_SAMPLE = 2**20
"""Features: from here on, the sample grows only with what FAISS holds for the fewest that fit a centroid."""

FEWEST_POINTS_PER_CENTROID = 39

FEW_CLUSTERS = 50
"""Up to here, local optima differ so much in purity that the best of several starts is kept."""

STARTS = 5
MANY_CLUSTERS = 2000
"""From here on, k-means starts from centroids found in two levels, and needs few iterations."""

LAST_ITERATIONS = 3

Refine = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Better centroids, float32 [K, D] of unit length, from a sample [S, D] and centroids [K, D], such as by TEMI."""


class Clusters(NamedTuple):
    ids: np.ndarray  # int32 [N], 0 .. K-1
    centroids: np.ndarray  # float32 [K, D], of unit length
    nearest: np.ndarray  # int64 [K, 8]: the images nearest to each centroid, in order; -1 where there are fewer
    sample_size: int  # features that the centroids were fitted on
    objective: float  # mean cosine of an image's feature with its centroid
    repaired: int  # tiny clusters that were dissolved
    moved: int  # images that got another id by that


def fit_clusters(
    features: Features,
    num_clusters: Sequence[int],
    *,
    seed: int,
    iterations: int = ITERATIONS,
    sample_size: int | None = None,
    refine: Refine | None = None,
    advance: Advance = ignore,
) -> list[Clusters]:
    """Spherical k-means of float16 or float32 [N, D], for every K of `num_clusters`, on the GPU where FAISS has one.

    The centroids of each K are fitted on a random sample, by default of `default_sample_size`, and refined if asked
    for. Then one pass over all features assigns them to the centroids of every K: an id is that of the centroid with
    the largest cosine. So the clusters of a K are the same whatever others are asked for. Clusters that are tiny are
    replaced (sgdm.annotate.repair), at the price of a pass for each of at most four rounds; what is tiny after that
    stays. The same seed and number of threads give the same clusters. `advance` is told of the first pass.

    In memory are a sample in float32, a block of features, and 4 bytes an image for each K.
    ValueError where K > N or K > sample_size, where a feature is zero or not finite, and where so many features are
    the same that a cluster stays empty.
    """
    count = len(features)
    for K in num_clusters:
        if not 1 <= K <= count:
            raise ValueError(
                f"{K} clusters cannot be made of {count} images: choose num_clusters between 1 and {count}"
            )
    samples, assignments = [], []
    for K in num_clusters:
        size = default_sample_size(K) if sample_size is None else sample_size
        if size < K:
            raise ValueError(f"{K} clusters cannot be fitted on a sample of {size} features: raise sample_size")
        samples.append(sample_rows(count, min(count, size), seed))
        sample = unit_rows(features, samples[-1])
        centroids = fit_centroids(sample, K, seed=seed, iterations=iterations)
        assignments.append(Assignment(centroids if refine is None else refine(sample, centroids), count))
        del sample  # before the next one is read
    assign(features, assignments, advance)

    for number in range(ROUNDS):
        changed = [
            each
            for each, rows in zip(assignments, samples, strict=True)
            if is_tiny(each.sizes).any() and replace_tiny(each, unit_rows(features, rows), rows, seed + number)
        ]
        if not changed:
            break
        assign(features, changed)
    return [
        Clusters(
            ids=each.ids,
            centroids=each.centroids,
            nearest=each.nearest,
            sample_size=len(rows),
            objective=each.cosine_sum / count,
            repaired=each.repaired,
            moved=each.moved,
        )
        for each, rows in zip(assignments, samples, strict=True)
    ]


def default_sample_size(num_clusters: int) -> int:
    """Features that K centroids are fitted on: 256 for each, at least 65,536 in all.

    k-means costs the product of sample and K. So beyond 2^20 features there are only 39 for each centroid, the
    fewest of which FAISS does not warn: 3.9 million at K = 100,000.
    """
    enough = max(SMALLEST_SAMPLE, POINTS_PER_CENTROID * num_clusters)
    return min(enough, max(LARGE_SAMPLE, FEWEST_POINTS_PER_CENTROID * num_clusters))


def fit_centroids(sample: np.ndarray, num_clusters: int, *, seed: int, iterations: int = ITERATIONS) -> np.ndarray:
    """float32 [K, D], of unit length: spherical k-means of all of `sample`, float32 [S, D] of unit length, S >= K.

    An iteration takes 2 S K D operations. From 2,000 clusters on, the iterations are those of about sqrt(K) clusters,
    and then of the parts of each, for about 4 S sqrt(K) D operations each; three of all K together come last.
    """
    if num_clusters < MANY_CLUSTERS:
        starts = STARTS if num_clusters <= FEW_CLUSTERS else 1
        return spherical_kmeans(sample, num_clusters, seed=seed, iterations=iterations, starts=starts)
    coarse = spherical_kmeans(sample, math.isqrt(num_clusters), seed=seed, iterations=iterations)
    ids = inner_product_index(coarse).search(sample, 1)[1][:, 0]
    parts = _in_proportion(np.bincount(ids, minlength=len(coarse)), num_clusters)
    start = [
        spherical_kmeans(sample[ids == cluster], int(count), seed=seed, iterations=iterations)
        for cluster, count in enumerate(parts)
        if count
    ]
    return spherical_kmeans(
        sample, num_clusters, seed=seed, iterations=min(iterations, LAST_ITERATIONS), start=np.concatenate(start)
    )


def _in_proportion(sizes: np.ndarray, total: int) -> np.ndarray:
    """int64 [n]: `total`, at most the sum of `sizes` [n], in proportion to them, none above its own."""
    ends = np.cumsum(sizes) * total // sizes.sum()
    return np.diff(ends, prepend=0)


def frequencies(ids: np.ndarray, num_clusters: int) -> np.ndarray:
    """float64 [K], the share of images in each cluster: sampling draws cluster ids by it."""
    return np.bincount(ids, minlength=num_clusters) / len(ids)
