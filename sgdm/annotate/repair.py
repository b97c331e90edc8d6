"""Clusters without images, or with next to none, are given images again.

A diffusion model learns nothing about an id that it hardly ever sees. So a tiny cluster is dissolved: its centroid
moves into a large cluster, which is cut there, and its images go to the nearest of the other centroids. How a cluster
is cut is found on those of its images that are in the sample which the centroids were fitted on.
"""

from __future__ import annotations

import heapq

import numpy as np

from sgdm.annotate.assignment import Assignment
from sgdm.annotate.kmeans import spherical_kmeans

TINY = 0.05
"""Of the mean number of images in a cluster; fewer are too few."""

ROUNDS = 4
"""At most, of moving centroids and assigning all images again: a part that was cut off may be tiny itself."""

CUTTING_SAMPLE = 4096  # images of one cluster that decide how it is cut
CUTTING_ITERATIONS = 10


def is_tiny(sizes: np.ndarray) -> np.ndarray:
    """bool [K]: clusters with fewer images than 5 % of the mean, or with none."""
    return sizes < max(1, TINY * sizes.mean())


def replace_tiny(assignment: Assignment, sample: np.ndarray, rows: np.ndarray, seed: int) -> int:
    """Moves the centroids of tiny clusters into large ones; how many, 0 where none is tiny or nothing can be cut.

    `sample` is float32 [S, D] of unit length, `rows` int64 [S] the images that it is of. The images keep their ids:
    assign them again. ValueError where a cluster is empty and none of the others has two different features.
    """
    sizes = assignment.sizes
    tiny = np.flatnonzero(is_tiny(sizes))
    if not len(tiny):
        return 0
    members = _Members(assignment.ids[rows], len(sizes), sample)
    parts = _cuts(sizes, tiny, members)
    emptiest = iter(tiny[np.argsort(sizes[tiny], kind="stable")])
    replaced = 0
    for cluster, count in parts.items():
        first, *others = _cut(assignment.centroids[cluster], members[cluster], count, seed)
        assignment.centroids[cluster] = first
        for centroid in others:
            assignment.centroids[next(emptiest)] = centroid
        replaced += len(others)
    assignment.repaired += replaced
    if not replaced and sizes.min() == 0:
        raise ValueError(
            f"{len(sizes)} clusters were asked for, but only {int((sizes > 0).sum())} can be told apart, because the "
            "features of many images are the same: choose a smaller num_clusters, or look for copies among the images"
        )
    return replaced


class _Members:
    """The features of a cluster's images in the sample, by the cluster's id."""

    def __init__(self, ids: np.ndarray, num_clusters: int, sample: np.ndarray) -> None:
        self._sample = sample
        self._order = np.argsort(ids, kind="stable")
        self._starts = np.searchsorted(ids[self._order], np.arange(num_clusters + 1))

    def __getitem__(self, cluster: int) -> np.ndarray:
        positions = self._order[self._starts[cluster] : self._starts[cluster + 1]]
        return self._sample[positions[:: max(1, len(positions) // CUTTING_SAMPLE)]]


def _cuts(sizes: np.ndarray, tiny: np.ndarray, members: _Members) -> dict[int, int]:
    """Into how many parts each cluster is cut, for as many new parts as clusters are tiny: always the largest next."""
    parts: dict[int, int] = {}
    different: dict[int, int] = {}
    queue = [(-int(sizes[cluster]), int(cluster)) for cluster in np.setdiff1d(np.arange(len(sizes)), tiny)]
    heapq.heapify(queue)
    while queue and sum(parts.values()) - len(parts) < len(tiny):
        cluster = heapq.heappop(queue)[1]
        count = parts.get(cluster, 1) + 1
        if cluster not in different:
            different[cluster] = len(np.unique(members[cluster], axis=0))
        if count <= different[cluster]:
            parts[cluster] = count
            heapq.heappush(queue, (-int(sizes[cluster]) // count, cluster))
    return parts


def _cut(centroid: np.ndarray, members: np.ndarray, parts: int, seed: int) -> np.ndarray:
    """float32 [parts, D], of unit length: centroids of the parts of a cluster, as near to its images as its own is.

    The means of the parts would do where the centroid is the mean of its images. A refined one is farther from all of
    them, as its neighbours are from theirs, whose images a mean would draw to itself. So the means are shifted
    together to where the centroid is, at right angles to what lies between them: they stay equally long, and two parts
    meet where they did.
    """
    means = spherical_kmeans(members, parts, seed=seed, iterations=CUTTING_ITERATIONS)
    middle = members.mean(axis=0)
    shift = centroid - middle / np.linalg.norm(middle)
    between = (means[1:] - means[0]).T
    shift -= between @ np.linalg.lstsq(between, shift)[0]
    placed = means + shift
    return placed / np.linalg.norm(placed, axis=1, keepdims=True)
