"""The centroid nearest to each image, for several sets of centroids in one pass over the features."""

from __future__ import annotations

from collections.abc import Sequence

import faiss
import numpy as np

from sgdm.annotate.feature_rows import Features, blocks, unit_rows
from sgdm.progress import Advance, ignore

GALLERY = 8
"""Images kept for each cluster, those nearest to its centroid."""


class Assignment:
    """Images in the clusters of some centroids, as `assign` finds them."""

    def __init__(self, centroids: np.ndarray, count: int) -> None:
        self.centroids = centroids  # float32 [K, D], of unit length
        self.ids = np.full(count, -1, np.int32)
        self.repaired = 0  # centroids that were moved from tiny clusters into large ones
        self.moved = 0  # images whose id an `assign` after the first changed
        self.restart()

    def restart(self) -> None:
        """Forgets what depends on where the centroids are, but for the ids."""
        self.cosine_sum = 0.0
        # int64 [K, 8]: the images nearest to each centroid, the nearest first; -1 where a cluster has fewer.
        self.nearest = np.full((len(self.centroids), GALLERY), -1, np.int64)
        self._cosines = np.full((len(self.centroids), GALLERY), -np.inf, np.float32)

    @property
    def sizes(self) -> np.ndarray:
        """int64 [K]: images in each cluster."""
        return np.bincount(self.ids, minlength=len(self.centroids))

    def take(self, rows: slice, ids: np.ndarray, cosines: np.ndarray) -> None:
        """Images `rows` belong to clusters `ids`, int64 [n]; float32 [n] are the cosines with these centroids."""
        before = self.ids[rows]
        self.moved += int(np.count_nonzero((before != ids) & (before >= 0)))
        self.ids[rows] = ids
        self.cosine_sum += float(cosines.sum(dtype=np.float64))

        order = np.lexsort((-cosines, ids))
        present, first, counts = np.unique(ids[order], return_index=True, return_counts=True)
        rank = np.arange(len(ids)) - np.repeat(first, counts)
        kept = rank < GALLERY
        slot = np.repeat(np.arange(len(present)), counts)[kept], GALLERY + rank[kept]
        # Beside those of the blocks before, the best of this block.
        of_both = np.pad(self._cosines[present], ((0, 0), (0, GALLERY)), constant_values=-np.inf)
        rows_of_both = np.pad(self.nearest[present], ((0, 0), (0, GALLERY)), constant_values=-1)
        of_both[slot] = cosines[order][kept]
        rows_of_both[slot] = rows.start + order[kept]
        best = np.argsort(-of_both, axis=1, kind="stable")[:, :GALLERY]
        self._cosines[present] = np.take_along_axis(of_both, best, axis=1)
        self.nearest[present] = np.take_along_axis(rows_of_both, best, axis=1)


def assign(features: Features, assignments: Sequence[Assignment], advance: Advance = ignore) -> None:
    """Gives every image the id of the centroid with the largest cosine, in each of the assignments.

    An exact search: 2 N K D operations for each set of centroids, on the GPU where FAISS has one.
    """
    searches = [inner_product_index(assignment.centroids) for assignment in assignments]
    for assignment in assignments:
        assignment.restart()
    for rows in blocks(len(features)):
        block = unit_rows(features, rows)
        for assignment, search in zip(assignments, searches, strict=True):
            cosines, ids = search.search(block, 1)
            assignment.take(rows, ids[:, 0], cosines[:, 0])
        advance(len(block))


def inner_product_index(rows: np.ndarray) -> faiss.Index:
    """Exact search for the largest inner product with float32 `rows` [n, D], on the GPU where FAISS has one."""
    index: faiss.Index = faiss.IndexFlatIP(rows.shape[1])
    if faiss.get_num_gpus() > 0:
        index = faiss.index_cpu_to_all_gpus(index)
    index.add(rows)
    return index
