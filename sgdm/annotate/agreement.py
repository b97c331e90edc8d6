"""What is to be said about clusters: their sizes and, where images have labels, how well both agree."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix

from sgdm.annotate.repair import is_tiny


def cluster_report(
    ids: np.ndarray, num_clusters: int, labels: np.ndarray | None = None, *, repaired: int = 0
) -> dict[str, Any]:
    """Sizes of the clusters `ids` [N] and, over images with a label >= 0, their agreement with `labels` [N].

    tiny: clusters with fewer images than 5 % of the mean, empty ones among them. repaired: as given, of Clusters.
    purity: the share of labelled images whose label is the commonest of their cluster. It grows with K: compare
    it at one K only. nmi: mutual information over the mean of both entropies. ari: adjusted Rand index, 0 by chance.
    """
    sizes = np.bincount(ids, minlength=num_clusters)
    report: dict[str, Any] = {
        "smallest": int(sizes.min()),
        "median": float(np.median(sizes)),
        "largest": int(sizes.max()),
        "empty": int((sizes == 0).sum()),
        "tiny": int(is_tiny(sizes).sum()),
        "repaired": repaired,
    }
    if labels is not None and (labels >= 0).any():
        labelled = labels >= 0
        found, true = ids[labelled], labels[labelled]
        report["purity"] = purity(found, true)
        report["nmi"] = float(normalized_mutual_info_score(true, found))
        report["ari"] = float(adjusted_rand_score(true, found))
        report["labelled"] = int(labelled.sum())
    return report


def purity(ids: np.ndarray, labels: np.ndarray) -> float:
    """Share of images whose label is the commonest of their cluster."""
    table = contingency_matrix(ids, labels, sparse=True)
    return float(table.max(axis=1).sum() / len(ids))
