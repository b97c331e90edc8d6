from __future__ import annotations

import numpy as np
import pytest

from sgdm.annotate.assignment import Assignment, assign
from sgdm.annotate.clusters import fit_clusters
from sgdm.annotate.repair import is_tiny, replace_tiny


def directions(count: int, around: np.ndarray, spread: float, seed: int = 0) -> np.ndarray:
    """float32 [count, D] of unit length around a direction."""
    rows = around + spread * np.random.default_rng(seed).normal(size=(count, len(around)))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def repaired(features: np.ndarray, centroids: np.ndarray) -> tuple[Assignment, int]:
    """The assignment after one round, and how many centroids it moved."""
    assignment = Assignment(centroids.copy(), len(features))
    assign(features, [assignment])
    before = assignment.ids.copy()
    replaced = replace_tiny(assignment, features, np.arange(len(features)), seed=0)
    assign(features, [assignment])
    assert assignment.repaired == replaced
    assert assignment.moved == (assignment.ids != before).sum()
    return assignment, replaced


def test_what_is_tiny() -> None:
    assert is_tiny(np.array([400, 190, 6, 4, 0])).tolist() == [False, False, False, True, True], "the mean is 120"
    assert is_tiny(np.array([3, 1, 1])).tolist() == [False, False, False], "an image is not none"


def test_an_empty_and_a_tiny_cluster_halve_the_largest_ones() -> None:
    x, y, z = np.eye(3)
    features = np.concatenate([directions(600, x, 0.2, 1), directions(300, y, 0.2, 2), directions(3, z, 0.01, 3)])
    # A centroid for each group, and one that no image is near to.
    centroids = np.stack([x, y, z, -(x + y + z) / np.sqrt(3)]).astype(np.float32)
    assignment, replaced = repaired(features, centroids)
    assert replaced == 2
    # 600 were halved, and then one of the three clusters of about 300.
    assert assignment.sizes.min() > 60
    assert len(set(assignment.ids[:600])) + len(set(assignment.ids[600:900])) == 4
    assert assignment.moved > 200


def test_a_cluster_may_be_cut_into_more_than_two() -> None:
    x, y, _ = np.eye(3)
    features = np.concatenate([directions(1000, x, 0.3, 1), directions(60, y, 0.1, 2)])
    nowhere = directions(4, -x - y, 0.01)
    assignment, replaced = repaired(features, np.concatenate([np.stack([x, y]), nowhere]).astype(np.float32))
    assert replaced == 4
    assert not is_tiny(assignment.sizes).any()
    assert (np.bincount(assignment.ids[:1000]) > 50).sum() == 5, "four were cut off from the large cluster"
    assert len(set(assignment.ids[1000:])) == 1


def test_a_cut_takes_no_images_from_clusters_whose_centroids_are_far_from_them() -> None:
    # As refined centroids are. The mean of a part would be nearer to the other images than their own centroid is.
    one, other, away = np.array([[1, 0.5, 0], [0.5, 1, 0], [0, 0, -1]])
    features = np.concatenate([directions(600, one, 0.1, 1), directions(300, other, 0.1, 2)])
    centroids = np.stack([one + 3 * away, other + 3 * away, -one - other]).astype(np.float32)
    centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
    assert (features[600:] @ one / np.linalg.norm(one) > features[600:] @ centroids[1]).all()
    assignment, replaced = repaired(features, centroids)
    assert replaced == 1
    assert (assignment.ids[600:] == 1).mean() > 0.98
    assert (np.bincount(assignment.ids[:600]) > 200).tolist() == [True, False, True]


def test_nothing_is_done_where_nothing_is_tiny() -> None:
    features = directions(100, np.ones(3), 0.5)
    assignment, replaced = repaired(features, directions(2, np.ones(3), 0.3))
    assert replaced == assignment.moved == 0


def test_a_tiny_cluster_stays_where_no_other_can_be_cut() -> None:
    x, y, _ = np.eye(3, dtype=np.float32)
    features = np.concatenate([np.tile(x, (100, 1)), y[None]])
    assignment, replaced = repaired(features, np.stack([x, y]))
    assert replaced == 0
    assert assignment.sizes.tolist() == [100, 1]


def test_copies_of_one_feature_are_never_cut() -> None:
    # The largest cluster are copies; the second, of other features, is cut in their place.
    x, y, z = np.eye(3)
    features = np.concatenate([np.tile(x, (500, 1)), directions(100, y, 0.2)]).astype(np.float32)
    assignment, replaced = repaired(features, np.stack([x, y, -z]).astype(np.float32))
    assert replaced == 1
    assert assignment.sizes.max() == 500 and assignment.sizes.min() > 20


@pytest.mark.parametrize("num_clusters", [5, 6])
def test_more_clusters_than_different_features(num_clusters: int) -> None:
    features = np.tile(np.eye(5, dtype=np.float16), (20, 1))
    if num_clusters == 5:
        (clusters,) = fit_clusters(features, [5], seed=0)
        assert np.bincount(clusters.ids).tolist() == [20] * 5
        return
    with pytest.raises(ValueError, match=r"6 clusters were asked for, but only 5 can be told apart.*num_clusters"):
        fit_clusters(features, [num_clusters], seed=0)


def test_clusters_end_without_tiny_ones_where_k_means_leaves_some(monkeypatch: pytest.MonkeyPatch) -> None:
    # A few images are like no others: k-means gives them clusters of their own.
    features = np.concatenate([directions(5950, np.ones(8), 0.1), directions(50, np.ones(8), 20.0, seed=1)])
    features = features[np.random.default_rng(0).permutation(len(features))]
    monkeypatch.setattr("sgdm.annotate.clusters.ROUNDS", 0)
    (before,) = fit_clusters(features, [20], seed=0, sample_size=3000)
    monkeypatch.undo()
    (clusters,), (again,) = (fit_clusters(features, [20], seed=0, sample_size=3000) for _ in range(2))
    assert before.repaired == 0
    assert is_tiny(np.bincount(before.ids, minlength=20)).sum() <= clusters.repaired > 0
    assert 0 < clusters.moved < 3000
    assert not is_tiny(np.bincount(clusters.ids, minlength=20)).any()
    assert np.array_equal(again.ids, clusters.ids)
