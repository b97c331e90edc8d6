from __future__ import annotations

import numpy as np
import pytest
import torch
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric

from sgdm.metrics.score import inception_score


@pytest.mark.parametrize("splits", [1, 10])
def test_score_agrees_with_torch_fidelity(splits: int) -> None:
    logits = (3 * np.random.default_rng(0).standard_normal((203, 12))).astype(np.float32)
    theirs = isc_features_to_metric(torch.from_numpy(logits), splits=splits, shuffle=True, rng_seed=2020)
    mean, deviation = inception_score(logits, splits, seed=2020)
    assert mean == pytest.approx(theirs[KEY_METRIC_ISC_MEAN], rel=1e-4)
    assert deviation == pytest.approx(theirs[KEY_METRIC_ISC_STD], rel=1e-4, abs=1e-9)


def test_score_of_sure_and_even_classes_is_their_number() -> None:
    logits = 1e3 * np.eye(5, dtype=np.float32)[np.arange(100) % 5]
    assert inception_score(logits, splits=1)[0] == pytest.approx(5)


def test_score_of_images_that_look_alike_is_one() -> None:
    logits = np.tile(np.arange(6, dtype=np.float32), (50, 1))
    assert inception_score(logits) == (pytest.approx(1), pytest.approx(0, abs=1e-9))


def test_order_of_a_sorted_set_does_not_put_one_class_into_each_split() -> None:
    logits = 1e3 * np.eye(5, dtype=np.float32)[np.repeat(np.arange(5), 200)]
    assert inception_score(logits, splits=5)[0] > 4.5


def test_unusable_logits_are_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        inception_score(np.full((10, 3), np.nan, np.float32))
    with pytest.raises(ValueError, match="4 images cannot be split into 10"):
        inception_score(np.zeros((4, 3), np.float32), splits=10)
