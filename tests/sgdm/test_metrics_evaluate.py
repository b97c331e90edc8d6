from __future__ import annotations

import numpy as np
import pytest

from sgdm.metrics.evaluate import evaluate, singular
from sgdm.metrics.frechet import Moments
from sgdm.metrics.statistics import Statistics

KEYS = [
    "frechet_distance",
    "spatial_frechet_distance",
    "kernel_distance",
    "precision",
    "recall",
    "density",
    "coverage",
    "inception_score",
]


def features(count: int, seed: int, shift: float = 0.0) -> Statistics:
    random = np.random.default_rng(seed)
    pool = (random.standard_normal((count, 8)) + shift).astype(np.float32)
    spatial = Moments.of((random.standard_normal((count, 6)) + shift).astype(np.float32))
    return Statistics(Moments.of(pool), spatial, pool, random.standard_normal((count, 5)).astype(np.float32))


def test_the_nearer_set_is_better_in_every_comparison() -> None:
    real = features(120, seed=0)
    near = evaluate(real, features(80, seed=1), seed=0)
    far = evaluate(real, features(80, seed=2, shift=1.0), seed=0)
    assert list(near) == KEYS and all(type(value) is float for value in near.values())
    for key in ("frechet_distance", "spatial_frechet_distance", "kernel_distance"):
        assert near[key] < far[key]
    for key in ("precision", "recall", "density", "coverage"):
        assert near[key] > far[key]


def test_results_are_a_function_of_the_seed() -> None:
    real, generated = features(120, seed=3), features(80, seed=4)
    chosen = dict(neighbour_images=50, kernel_subsets=3, kernel_subset_size=40)
    first = evaluate(real, generated, seed=1, **chosen)
    assert evaluate(real, generated, seed=1, **chosen) == first
    other = evaluate(real, generated, seed=2, **chosen)
    assert other["frechet_distance"] == first["frechet_distance"]
    assert other["kernel_distance"] != first["kernel_distance"]


def test_equally_many_images_of_both_sets_have_neighbours() -> None:
    many, few = features(40, seed=5), features(5, seed=6)
    with pytest.raises(ValueError, match="5 real images have no 5th neighbour"):
        evaluate(many, few, seed=0)
    with pytest.raises(ValueError, match="5 real images have no 5th neighbour"):
        evaluate(many, many, seed=0, neighbour_images=5)
    assert evaluate(many, many, seed=0, neighbour_images=6)["recall"] > 0


def test_no_distance_to_fewer_real_images_than_dimensions() -> None:
    few, enough, generated = features(8, seed=7), features(9, seed=7), features(80, seed=8)
    why = singular(few)
    assert why is not None and "8 real images span 7 of 8 dimensions" in why and singular(enough) is None
    assert evaluate(few, generated, seed=0)["frechet_distance"] is None
    assert evaluate(enough, generated, seed=0)["frechet_distance"] is not None
    # The spatial features have 6 dimensions, of which 8 images span all.
    assert evaluate(few, generated, seed=0)["spatial_frechet_distance"] is not None


def test_networks_without_classes_and_maps_have_fewer_metrics() -> None:
    plain = Statistics(features(80, seed=9).moments, None, features(80, seed=9).pool, None)
    found = evaluate(plain, plain, seed=0)
    assert "inception_score" not in found and "spatial_frechet_distance" not in found
