"""Copies among generated images, by nearest neighbours: many clusters of few images invite them."""

from __future__ import annotations

from typing import NamedTuple

import faiss
import numpy as np
from numpy.typing import NDArray

BLOCK = 65_536
"""Training images that are searched at a time: bounds the memory of their float32 copy."""


class Replicas(NamedTuple):
    """Nearest neighbours of M samples among N training images."""

    share: float
    """Of samples that are closer to a training image than any other training image is to that one. Of real images that
    were not trained on it is about a half, as they and the training images are alike: read it beside theirs."""

    nearest: NDArray[np.int64]
    """The training image nearest to each sample, [M]."""

    ratio: NDArray[np.float32]
    """The distance to it, over its distance to the nearest other training image, [M]; below 1 counts as a copy. Where
    the training image has a twin, at no distance, it is 0 for another twin and infinite for any other sample."""


def find_replicas(training: NDArray[np.floating], samples: NDArray[np.floating], block: int = BLOCK) -> Replicas:
    """Exact, by FAISS, over features [N, D] and [M, D].

    ValueError for fewer than two training images, and for features of two kinds."""
    if len(training) < 2 or training.shape[1:] != samples.shape[1:]:
        raise ValueError(
            f"replicas cannot be looked for in training features {training.shape} and samples {samples.shape}: there "
            "must be 2 training images at least, and features of one network"
        )
    centre = training[:BLOCK].mean(axis=0, dtype=np.float64).astype(np.float32)  # near 0 products cancel least
    queries = samples.astype(np.float32) - centre
    distances, nearest = _search(training, queries, 1, centre, block)
    found, place = np.unique(nearest[:, 0], return_inverse=True)
    own_distances, own = _search(training, training[found].astype(np.float32) - centre, 2, centre, block)
    # The nearest of a training image is itself, or a twin at the same place, which is another one.
    others = np.where(own[:, 0] == found, own_distances[:, 1], own_distances[:, 0])
    distance = np.sqrt(np.maximum(distances[:, 0], 0))
    other = np.sqrt(np.maximum(others, 0))[place]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where((distance == 0) & (other == 0), 0, distance / other).astype(np.float32)
    return Replicas(float((ratio < 1).mean()), nearest[:, 0], ratio)


def _search(
    training: NDArray[np.floating], queries: NDArray[np.float32], k: int, centre: NDArray[np.float32], block: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Squared distances and rows [M, k] of the k nearest, block by block of the training images."""
    distances = np.empty((len(queries), 0), np.float32)
    rows = np.empty((len(queries), 0), np.int64)
    for start in range(0, len(training), block):
        part = training[start : start + block].astype(np.float32) - centre
        index: faiss.Index = faiss.IndexFlatL2(part.shape[1])
        if getattr(faiss, "get_num_gpus", lambda: 0)():
            index = faiss.index_cpu_to_all_gpus(index)
        index.add(part)
        found_distances, found = index.search(np.ascontiguousarray(queries), min(k, len(part)))
        distances = np.concatenate([distances, found_distances], axis=1)
        rows = np.concatenate([rows, found + start], axis=1)
        order = np.argsort(distances, axis=1, kind="stable")[:, :k]
        distances, rows = np.take_along_axis(distances, order, 1), np.take_along_axis(rows, order, 1)
    return distances, rows
