from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgdm.metrics.replicas import find_replicas


def draw(count: int, seed: int, dimension: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, dimension)).astype(np.float32) + 5


def test_copies_are_found_and_far_samples_are_none() -> None:
    training = draw(300, seed=0)
    rows = np.random.default_rng(1).integers(0, 300, 50)
    copies = find_replicas(training, training[rows] + 1e-3)
    assert copies.share == 1 and (copies.nearest == rows).all() and copies.ratio.max() < 0.1
    assert find_replicas(training, training[rows] + 100).share == 0


def test_real_images_that_were_not_trained_on_are_copies_by_half() -> None:
    share = find_replicas(draw(2000, seed=2), draw(1000, seed=3)).share
    assert 0.4 < share < 0.6


def test_twins_among_the_training_images() -> None:
    """Where a training image has a twin, another twin is a copy, and what lies near them is none."""
    training = np.concatenate([draw(20, seed=4)] * 2)
    found = find_replicas(training, np.concatenate([training[:3], training[3:6] + 0.01]))
    assert (found.ratio[:3] == 0).all() and np.isinf(found.ratio[3:]).all() and found.share == 0.5


@given(count=st.integers(2, 12), samples=st.integers(1, 5), seed=st.integers(0, 1000), block=st.integers(1, 13))
@settings(deadline=None, max_examples=40)
def test_equals_the_definition_in_any_blocks(count: int, samples: int, seed: int, block: int) -> None:
    training, generated = draw(count, seed), draw(samples, seed + 1)
    found = find_replicas(training, generated, block)
    for sample, nearest, ratio in zip(generated, found.nearest, found.ratio, strict=True):
        distances = np.linalg.norm(training - sample, axis=1)
        assert nearest == distances.argmin()
        others = np.delete(np.linalg.norm(training - training[nearest], axis=1), nearest)
        assert ratio == pytest.approx(distances.min() / others.min(), rel=1e-3)
    assert found.share == (found.ratio < 1).mean()


def test_half_precision_features_will_do() -> None:
    training, generated = draw(200, seed=5), draw(50, seed=6)
    exact, rounded = find_replicas(training, generated), find_replicas(training.astype(np.float16), generated)
    assert rounded.share == pytest.approx(exact.share, abs=0.05)


def test_what_cannot_be_compared_is_refused() -> None:
    for training in (draw(1, seed=7), draw(9, seed=7, dimension=5)):
        with pytest.raises(ValueError, match="2 training images at least, and features of one network"):
            find_replicas(training, draw(3, seed=8))
