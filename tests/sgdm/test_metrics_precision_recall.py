from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from sgdm.metrics.precision_recall import PrecisionRecall, precision_recall


def normal(count: int, dimension: int, seed: int, scale: float = 1.0) -> np.ndarray:
    return (scale * np.random.default_rng(seed).standard_normal((count, dimension))).astype(np.float32)


def by_definition(real: np.ndarray, generated: np.ndarray, neighbours: int) -> PrecisionRecall:
    """The definitions of both papers, written out image by image."""

    def radius(points: np.ndarray, index: int) -> float:
        others = np.delete(points, index, axis=0)
        return float(np.sort(np.linalg.norm(others - points[index], axis=1))[neighbours - 1])

    real_radii = [radius(real, index) for index in range(len(real))]
    generated_radii = [radius(generated, index) for index in range(len(generated))]
    inside = np.array([[np.linalg.norm(y - x) <= r for x, r in zip(real, real_radii, strict=True)] for y in generated])
    recalled = [any(np.linalg.norm(x - y) <= r for y, r in zip(generated, generated_radii, strict=True)) for x in real]
    return PrecisionRecall(
        precision=inside.any(axis=1).mean(),
        recall=float(np.mean(recalled)),
        density=inside.sum() / (neighbours * len(generated)),
        coverage=inside.any(axis=0).mean(),
    )


@given(
    real_count=st.integers(8, 30),
    generated_count=st.integers(8, 30),
    dimension=st.integers(1, 5),
    neighbours=st.integers(1, 6),
    scale=st.floats(0.3, 3),
    seed=st.integers(0, 2**16),
)
@settings(deadline=None, max_examples=40)
def test_equals_the_definitions(
    real_count: int, generated_count: int, dimension: int, neighbours: int, scale: float, seed: int
) -> None:
    real, generated = normal(real_count, dimension, seed), normal(generated_count, dimension, seed + 1, scale)
    assert precision_recall(real, generated, neighbours) == pytest.approx(by_definition(real, generated, neighbours))


def test_precision_and_recall_agree_with_torch_fidelity() -> None:
    real, generated = normal(200, 16, seed=0), normal(150, 16, seed=1, scale=0.9)
    theirs = prc_features_to_metric(
        torch.from_numpy(generated),
        torch.from_numpy(real),
        prc_neighborhood=3,
        prc_batch_size=64,
        save_cpu_ram=False,
        verbose=False,
    )
    ours = precision_recall(real, generated, neighbours=3)
    assert ours.precision == pytest.approx(theirs[KEY_METRIC_PRECISION], rel=1e-4)
    assert ours.recall == pytest.approx(theirs[KEY_METRIC_RECALL], rel=1e-4)


@pytest.mark.parametrize("block", [1, 37, 64, 1000])
def test_blocks_do_not_change_the_result(block: int) -> None:
    real, generated = normal(64, 12, seed=2), normal(50, 12, seed=3, scale=1.2)
    assert precision_recall(real, generated, block=block) == pytest.approx(precision_recall(real, generated))


def test_a_set_far_from_the_origin_is_judged_as_one_near_it() -> None:
    real, generated = normal(64, 12, seed=4), normal(64, 12, seed=5)
    shifted = precision_recall(real + np.float32(1000), generated + np.float32(1000))
    assert shifted == pytest.approx(precision_recall(real, generated), abs=0.02)


def test_sets_far_apart_share_nothing() -> None:
    assert precision_recall(normal(30, 4, seed=6), normal(30, 4, seed=7) + 100) == PrecisionRecall(0, 0, 0, 0)


def test_a_generator_that_repeats_one_mode_is_precise_and_recalls_little() -> None:
    modes = np.concatenate([normal(50, 4, seed=8), normal(50, 4, seed=9) + 50])
    result = precision_recall(modes, normal(100, 4, seed=10, scale=0.7))
    assert result.precision > 0.9 and result.density > 0.9
    assert result.recall < 0.55 and result.coverage < 0.55


def test_sets_without_neighbours_or_with_nan_are_refused() -> None:
    with pytest.raises(ValueError, match="5 generated images have no 5th neighbour"):
        precision_recall(normal(10, 2, seed=11), normal(5, 2, seed=12))
    with pytest.raises(ValueError, match="real images are NaN"):
        precision_recall(np.full((10, 2), np.nan, np.float32), normal(10, 2, seed=13))
