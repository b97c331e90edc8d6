"""All metrics of one set of generated images against one set of real images."""

from __future__ import annotations

import numpy as np

from sgdm.metrics.frechet import Moments, frechet_distance, kernel_distance
from sgdm.metrics.networks import Features
from sgdm.metrics.precision_recall import precision_recall
from sgdm.metrics.score import inception_score


def evaluate(
    real: Features,
    generated: Features,
    *,
    seed: int,
    neighbours: int = 5,
    neighbour_images: int = 5000,
    kernel_subsets: int = 100,
    kernel_subset_size: int = 1000,
    score_splits: int = 10,
) -> dict[str, float]:
    """frechet_distance, kernel_distance, inception_score (of the generated), precision, recall, density, coverage.

    Precision, recall, density and coverage take equally many images of both sets, drawn by `seed`: `neighbour_images`,
    or the smaller set's size (5,000 and k = 5 are what self-guided diffusion models were reported with). Kernel subsets
    are not larger than the smaller set.
    """
    smaller = min(len(real.pool), len(generated.pool))
    chosen = min(smaller, neighbour_images)
    random = np.random.RandomState(seed)
    neighbourhood = precision_recall(
        real.pool[random.choice(len(real.pool), chosen, replace=False)],
        generated.pool[random.choice(len(generated.pool), chosen, replace=False)],
        neighbours,
    )
    return {
        "frechet_distance": frechet_distance(Moments.of(real.pool), Moments.of(generated.pool)),
        "kernel_distance": kernel_distance(
            real.pool, generated.pool, kernel_subsets, min(kernel_subset_size, smaller), seed
        ),
        "inception_score": inception_score(generated.logits, score_splits, seed)[0],
        **neighbourhood._asdict(),
    }
