"""Dropping, emptying and joining conditions."""

from __future__ import annotations

import pytest
import torch

from sgdm.conditions import Condition, concatenate, flip_images, make_condition

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


def test_flip_mirrors_the_masks_that_are_flipped() -> None:
    mask = torch.arange(12.0).reshape(2, 1, 2, 3)
    flipped = Condition(torch.tensor([1, 2]), mask=mask).flip(torch.tensor([False, True]))
    assert flipped.cluster.tolist() == [1, 2]
    assert flipped.mask.tolist() == [[[[0, 1, 2], [3, 4, 5]]], [[[8, 7, 6], [11, 10, 9]]]]


def test_flip_and_crop_of_a_mask_are_those_of_its_image() -> None:
    image = torch.randn(4, 3, 8, 8)
    condition = Condition(mask=(image > 0).float())
    flipped = torch.tensor([True, False, True, False])
    mask = condition.flip(flipped).crop(1, 2, 5, 6).mask
    assert torch.equal(mask, (flip_images(image, flipped)[:, :, 1:6, 2:8] > 0).float())


def test_crop_keeps_the_attributes_that_still_have_a_pixel() -> None:
    mask = torch.zeros(1, 2, 4, 4)
    mask[0, 0, 0, 0] = mask[0, 1, 3, 3] = 1
    condition = Condition(attributes=torch.ones(1, 2), mask=mask)
    assert condition.crop(0, 0, 2, 2).attributes.tolist() == [[1, 0]]
    assert Condition(torch.tensor([3])).crop(0, 0, 2, 2).cluster.tolist() == [3]


def test_a_box_mask_becomes_one_channel() -> None:
    layout = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    layout[1] = 1
    condition = make_condition(torch.tensor([4, 5]), layout)
    assert condition is not None and condition.attributes is None
    assert condition.cluster.tolist() == [4, 5]
    assert condition.mask.dtype == torch.float32 and condition.mask.sum(dim=(1, 2, 3)).tolist() == [0, 16]


def test_a_label_map_becomes_a_channel_a_class_and_their_presence() -> None:
    labels = torch.tensor([[[0, 2], [255, 2]], [[255, 255], [255, 255]]], dtype=torch.uint8)
    condition = make_condition(None, labels, num_segments=3)
    assert condition is not None and condition.cluster is None
    assert condition.attributes.tolist() == [[1, 0, 1], [0, 0, 0]]
    expected = torch.nn.functional.one_hot(labels.long().clamp_max(3), 4)[..., :3].permute(0, 3, 1, 2)
    assert torch.equal(condition.mask, expected.float())


def test_nothing_guides_without_cluster_and_layout() -> None:
    assert make_condition(None, None) is None
