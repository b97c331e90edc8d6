from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import normalized_mutual_info_score

from sgdm.annotate.clusters import fit_centroids, fit_clusters
from sgdm.annotate.feature_rows import unit_rows
from sgdm.annotate.number_of_clusters import suggest_num_clusters
from sgdm.annotate.temi import Heads, mutual_information_loss, refine_centroids

CPU = torch.device("cpu")


def mixture(count: int, groups: int, dimension: int = 32, spread: float = 0.7) -> tuple[np.ndarray, np.ndarray]:
    """Features float32 [N, D] of equally likely groups, and the group of each."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(groups, dimension))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    labels = random.integers(0, groups, count)
    noise = spread * random.normal(size=(count, dimension)) / np.sqrt(dimension)
    return (centres[labels] + noise).astype(np.float32), labels


def test_the_loss_is_the_papers_sum() -> None:
    student, teacher, shares = (torch.rand(*shape, dtype=torch.float64) for shape in ((4, 3), (4, 3), (3,)))
    student, teacher = student / student.sum(dim=1, keepdim=True), teacher / teacher.sum(dim=1, keepdim=True)
    by_hand = 0.0
    for s, t in zip(student, teacher, strict=True):
        by_hand -= np.log(sum(float(s[c] * t[c]) ** 0.6 / float(shares[c]) for c in range(3))) / 4
    assert float(mutual_information_loss(student.log(), teacher.log(), shares)) == pytest.approx(by_hand)


def test_both_orders_of_a_pair_count_and_shares_follow_the_teacher() -> None:
    rows = torch.from_numpy(unit_rows(mixture(20, 4, 5)[0], slice(None)))
    heads, swapped = Heads(rows[:3], unit=True), Heads(rows[:3], unit=True)
    loss = heads.loss(rows[4:12], rows[12:20])
    assert torch.allclose(loss, swapped.loss(rows[12:20], rows[4:12]))
    expected = torch.softmax(rows[4:20] @ rows[:3].T / 0.1, dim=1).mean(dim=0)
    assert torch.allclose(heads.shares, 0.9 / 3 + 0.1 * expected, atol=1e-6)
    loss.backward()
    assert heads.student.grad is not None and heads.student.grad.abs().max() > 0


def test_the_teacher_follows_slowly_on_the_sphere() -> None:
    heads = Heads(torch.eye(3)[:2], unit=True)
    heads.student.data = torch.tensor([[0.0, 5.0, 0.0], [0.0, 1.0, 0.0]])
    with torch.no_grad():
        heads.follow(0)
    assert torch.allclose(heads.teacher[0], torch.tensor([0.996, 0.004, 0.0]))
    assert torch.allclose(heads.result().norm(dim=1), torch.ones(2))


def test_refined_clusters_are_nearer_to_the_groups() -> None:
    features, labels = mixture(3000, 20, spread=1.0)
    sample = unit_rows(features, slice(None))
    centroids = fit_centroids(sample, 20, seed=1, iterations=2)  # far from the best that k-means can do
    refined = refine_centroids(sample, centroids, steps=500, seed=0, device=CPU)
    assert refined.shape == (20, 32) and refined.dtype == np.float32
    assert np.linalg.norm(refined, axis=1) == pytest.approx(np.ones(20), abs=1e-5)
    before, after = (
        normalized_mutual_info_score(labels, (sample @ rows.T).argmax(axis=1)) for rows in (centroids, refined)
    )
    assert after > before + 0.01


def test_a_killed_refinement_goes_on_to_the_same_centroids(tmp_path: Path) -> None:
    sample = unit_rows(mixture(500, 5)[0], slice(None))
    centroids, checkpoint = sample[:7], tmp_path / "temi.pt"
    whole = refine_centroids(sample, centroids, steps=600, seed=0, device=CPU)
    pairs: list[int] = []

    def kill(count: int) -> None:
        pairs.append(count)
        if len(pairs) == 550:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        refine_centroids(sample, centroids, steps=600, seed=0, device=CPU, checkpoint=checkpoint, advance=kill)
    again: list[int] = []
    went_on = refine_centroids(
        sample, centroids, steps=600, seed=0, device=CPU, checkpoint=checkpoint, advance=again.append
    )
    assert len(again) == 1 + 100, "goes on from step 500"
    assert np.array_equal(went_on, whole)


def test_few_features_have_few_neighbours() -> None:
    sample = unit_rows(mixture(3, 2)[0], slice(None))
    assert np.isfinite(refine_centroids(sample, sample[:2], steps=3, seed=0, device=CPU)).all()
    with pytest.raises(ValueError, match="neighbours cannot be found among 1 features"):
        refine_centroids(sample[:1], sample[:1], steps=3, seed=0, device=CPU)


def test_the_loss_is_finite_where_a_cluster_is_given_up() -> None:
    never = torch.tensor([[0.0, -200.0]])
    assert mutual_information_loss(never, never, torch.tensor([1.0, 0.0])).isfinite()


def test_clusters_of_refined_centroids_are_clusters() -> None:
    features, labels = mixture(2000, 10)

    def refine(sample: np.ndarray, centroids: np.ndarray) -> np.ndarray:
        return refine_centroids(sample, centroids, steps=100, seed=0, device=CPU)

    plain, refined = (fit_clusters(features, [10, 15], seed=0, refine=how) for how in (None, refine))
    for clusters, before in zip(refined, plain, strict=True):
        assert not np.array_equal(clusters.centroids, before.centroids)
        cosine = unit_rows(features, slice(None)) @ clusters.centroids.T
        assert (cosine.max(axis=1) - cosine[np.arange(2000), clusters.ids]).max() < 1e-5
        assert normalized_mutual_info_score(labels, clusters.ids) > 0.85


def test_the_bound_is_of_the_order_of_the_groups() -> None:
    groups = 12
    features, _ = mixture(2000, groups)
    candidates = [6, 12, 24, 48, 120]
    pairs: list[int] = []
    suggestion = suggest_num_clusters(features, candidates, seed=0, device=CPU, steps=400, advance=pairs.append)
    assert sum(pairs) == 5 * 400 * 512
    assert groups <= suggestion.num_clusters <= 2 * groups
    assert [use.num_clusters for use in suggestion.table] == candidates
    ratios = [use.ratio for use in suggestion.table]
    assert min(ratios[:2]) >= 0.96
    assert all(later <= earlier + 0.03 for earlier, later in pairwise(ratios))
    assert ratios[-1] < 0.75
    after = next(use for use in suggestion.table if use.num_clusters > suggestion.num_clusters)
    assert f"{after.used} of {after.num_clusters}" in suggestion.reason


def test_candidates_beyond_every_group_or_below() -> None:
    features, _ = mixture(1000, 4)
    over = suggest_num_clusters(features, [120, 100], seed=0, device=CPU, steps=200)
    assert over.num_clusters == 100 and "try fewer" in over.reason
    under = suggest_num_clusters(features, [2, 3], seed=0, device=CPU, steps=50)
    assert under.num_clusters == 3 and "the most that were tried" in under.reason


@pytest.mark.parametrize("candidates", [[], [0, 3], [3, 101]])
def test_candidates_that_cannot_be(candidates: list[int]) -> None:
    with pytest.raises(ValueError, match=r"candidates for the number of clusters are .*: give some of 1 to 100"):
        suggest_num_clusters(mixture(100, 4)[0], candidates, seed=0, device=CPU)
