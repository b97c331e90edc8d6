"""Case of the clusters: k-means against scikit-learn's, at equal inertia.

scikit-learn's KMeans runs until it converges. Ours and MiniBatchKMeans take the fewest iterations, or passes over the
features, whose inertia is within 1 % of its result, or else the most that are tried; they are found before anything is
timed. Inertia is the mean squared distance of a feature of unit length to the mean of its cluster, for all of them.
scikit-learn is given features of unit length; ours brings float16 ones to unit length, and finds the images nearest to
each centroid too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch

from benchmarks.comparison import Comparison
from sgdm.annotate.clusters import fit_clusters
from sgdm.annotate.feature_rows import unit_rows

CPU = torch.device("cpu")
TOLERANCE = 1.01
"""Of the inertia that scikit-learn's KMeans ends with."""
SETTINGS = (1, 2, 3, 5, 8, 12, 20, 30, 50, 80)
MINI_BATCH = 1024  # scikit-learn's default

Ids = Callable[[int], np.ndarray]
"""The cluster of each image, from a number of iterations or passes."""


def clusters(device: torch.device, quick: bool) -> Iterator[Comparison]:
    """On the CPU, but for ours where FAISS has a GPU."""
    for count, dimension, num_clusters in [(2000, 32, 60)] if quick else [(20_000, 128, 100), (20_000, 128, 1000)]:
        yield _comparison(count, dimension, num_clusters)


def _comparison(count: int, dimension: int, num_clusters: int) -> Comparison:
    features = mixture(count, dimension, groups=num_clusters)
    unit = unit_rows(features, slice(None))
    peers: dict[str, Ids] = {
        "scikit-learn KMeans": partial(_converged, unit, num_clusters),
        "scikit-learn MiniBatchKMeans": partial(_mini_batch, unit, num_clusters),
        "sgdm": partial(_ours, features, num_clusters),
    }
    target = inertia(unit, _converged(unit, num_clusters, 0))
    steps = {}
    for name, ids in peers.items():
        settings = (0,) if name == "scikit-learn KMeans" else SETTINGS
        setting, reached = fewest(ids, settings, unit, TOLERANCE * target)
        work = f"{setting} {'passes' if 'Mini' in name else 'iterations'}, " if setting else ""
        steps[f"{name}, {work}inertia {reached:.4f}"] = partial(partial, ids, setting)
    return Comparison(f"{count} features of {dimension} numbers, K = {num_clusters}", steps, CPU, images=count)


def fewest(ids: Ids, settings: Sequence[int], unit: np.ndarray, target: float) -> tuple[int, float]:
    """The first setting whose inertia is at most the target, or else the last one, and its inertia."""
    for setting in settings:
        reached = inertia(unit, ids(setting))
        if reached <= target:
            break
    return setting, reached


def inertia(unit: np.ndarray, ids: np.ndarray) -> float:
    """Mean squared distance of rows [N, D] to the mean of their cluster."""
    num_clusters = int(ids.max()) + 1
    sums = np.zeros((num_clusters, unit.shape[1]))
    np.add.at(sums, ids, unit)
    means = sums / np.maximum(np.bincount(ids, minlength=num_clusters), 1)[:, None]
    return float(np.square(unit - means[ids]).sum() / len(unit))


def mixture(count: int, dimension: int, groups: int) -> np.ndarray:
    """float16 [count, dimension] around random directions; groups overlap."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((groups, dimension), np.float32)
    noise = 1.5 * random.standard_normal((count, dimension), np.float32)
    return (centres[random.integers(0, groups, count)] + noise).astype(np.float16)


def _ours(features: np.ndarray, num_clusters: int, iterations: int) -> np.ndarray:
    return fit_clusters(features, [num_clusters], seed=0, iterations=iterations)[0].ids


def _converged(unit: np.ndarray, num_clusters: int, _: int) -> np.ndarray:
    from sklearn.cluster import KMeans

    return KMeans(num_clusters, n_init=1, random_state=0).fit(unit).labels_


def _mini_batch(unit: np.ndarray, num_clusters: int, passes: int) -> np.ndarray:
    from sklearn.cluster import MiniBatchKMeans

    kmeans = MiniBatchKMeans(
        num_clusters, n_init=1, random_state=0, batch_size=MINI_BATCH, max_iter=passes, max_no_improvement=None
    )
    return kmeans.fit(unit).labels_
