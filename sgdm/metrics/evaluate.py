"""All metrics of one set of generated images against one set of real images."""

from __future__ import annotations

import numpy as np

from sgdm.metrics.frechet import Moments, frechet_distance, kernel_distance
from sgdm.metrics.precision_recall import precision_recall
from sgdm.metrics.score import inception_score
from sgdm.metrics.statistics import Statistics


def evaluate(
    real: Statistics,
    generated: Statistics,
    *,
    seed: int,
    neighbours: int = 5,
    neighbour_images: int = 5000,
    kernel_subsets: int = 100,
    kernel_subset_size: int = 1000,
    score_splits: int = 10,
) -> dict[str, float | None]:
    """frechet_distance, spatial_frechet_distance where there are spatial features, kernel_distance, precision, recall,
    density, coverage, and inception_score (of the generated) where there are logits.

    A Fréchet distance is None where the covariance of the real images is singular, see `singular`. Precision, recall,
    density and coverage take equally many images of both sets, drawn by `seed`: `neighbour_images`, or the smaller
    set's size (5,000 and k = 5 are what self-guided diffusion models were reported with). Kernel subsets are not larger
    than the smaller set.
    """
    found = {"frechet_distance": distance(real.moments, generated.moments)}
    if real.spatial is not None and generated.spatial is not None:
        found["spatial_frechet_distance"] = distance(real.spatial, generated.spatial)
    smaller = min(len(real.pool), len(generated.pool))
    found["kernel_distance"] = kernel_distance(
        real.pool, generated.pool, kernel_subsets, min(kernel_subset_size, smaller), seed
    )
    chosen = min(smaller, neighbour_images)
    random = np.random.RandomState(seed)
    found |= precision_recall(
        real.pool[random.choice(len(real.pool), chosen, replace=False)],
        generated.pool[random.choice(len(generated.pool), chosen, replace=False)],
        neighbours,
    )._asdict()
    if generated.logits is not None:
        found["inception_score"] = inception_score(generated.logits, score_splits, seed)[0]
    return found


def distance(real: Moments, generated: Moments) -> float | None:
    """The Fréchet distance; None where it would say nothing, see `singular`."""
    return None if real.count <= real.dimension else frechet_distance(real, generated)


def singular(real: Statistics) -> str | None:
    """Why there is no Fréchet distance to these real images; None where there is one."""
    moments = real.moments
    if moments.count > moments.dimension:
        return None
    return (
        f"no Fréchet distance: {moments.count:,} real images span {moments.count - 1:,} of {moments.dimension:,} "
        "dimensions of the features, and the distance along the others would be noise. Take more reference images, or "
        "compare kernel distances, which are without bias for any number"
    )
