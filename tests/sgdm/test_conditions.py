"""Dropping, emptying and joining conditions."""

from __future__ import annotations

import pytest
import torch

from sgdm.conditions import Condition, concatenate

K = 10


def full() -> Condition:
    return Condition(torch.tensor([1, 2, 3]), torch.ones(3, 4), torch.ones(3, 2, 5, 5))


def test_all_parts_of_a_sample_are_dropped_together() -> None:
    dropped = full().drop(torch.tensor([False, True, False]), K)
    assert dropped.cluster.tolist() == [1, K, 3]
    assert dropped.attributes.sum(dim=1).tolist() == [4, 0, 4]
    assert dropped.mask.sum(dim=(1, 2, 3)).tolist() == [50, 0, 50]


def test_the_original_is_left_alone() -> None:
    condition = full()
    condition.drop(torch.ones(3, dtype=torch.bool), K)
    condition.null(K)
    assert condition.cluster.tolist() == [1, 2, 3]
    assert condition.mask.sum() == 150


def test_null_is_everything_dropped() -> None:
    everything = full().drop(torch.ones(3, dtype=torch.bool), K)
    for part, expected in zip(full().null(K), everything, strict=True):
        assert torch.equal(part, expected)


def test_absent_parts_stay_absent() -> None:
    condition = Condition(torch.tensor([1, 2]))
    assert condition.null(K)[1:] == (None, None)
    assert condition.drop(torch.tensor([True, False]), K)[1:] == (None, None)
    assert condition.to("meta")[1:] == (None, None)


def test_clusters_cannot_be_dropped_without_their_number() -> None:
    with pytest.raises(ValueError, match="needs num_clusters"):
        Condition(torch.tensor([1])).null(None)
    assert Condition(attributes=torch.ones(1, 2)).null(None).attributes.sum() == 0


def test_concatenate_joins_part_by_part() -> None:
    joined = concatenate(full(), full().null(K))
    assert joined.cluster.tolist() == [1, 2, 3, K, K, K]
    assert joined.mask.shape == (6, 2, 5, 5)


def test_concatenate_refuses_different_parts() -> None:
    with pytest.raises(ValueError, match="'mask'"):
        concatenate(full(), full()._replace(mask=None))


def test_to_moves_every_part() -> None:
    assert all(part.device.type == "meta" for part in full().to("meta"))
