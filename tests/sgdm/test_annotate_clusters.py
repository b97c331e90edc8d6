from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgdm.annotate.agreement import cluster_report
from sgdm.annotate.clusters import Clusters, default_sample_size, fit_centroids, fit_clusters, frequencies
from sgdm.annotate.feature_rows import unit_rows


def blobs(count: int, num_blobs: int, dimension: int = 16, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features [N, D] around `num_blobs` directions, with lengths that differ by a factor of a hundred."""
    random = np.random.default_rng(seed)
    directions = np.linalg.qr(random.normal(size=(dimension, dimension)))[0][:num_blobs]
    labels = random.integers(0, num_blobs, count)
    features = directions[labels] + 0.05 * random.normal(size=(count, dimension))
    return (features * random.uniform(0.1, 10, (count, 1))).astype(np.float16), labels


def cosines(features: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """float64 [N, K]."""
    exact = features.astype(np.float64)
    return exact @ centroids.T.astype(np.float64) / np.linalg.norm(exact, axis=1, keepdims=True)


def check(features: np.ndarray, clusters: Clusters) -> None:
    """What must be so of any clusters, from their definition."""
    K = len(clusters.centroids)
    assert clusters.ids.dtype == np.int32 and clusters.ids.shape == (len(features),)
    assert np.linalg.norm(clusters.centroids, axis=1) == pytest.approx(np.ones(K), abs=1e-5)
    cosine = cosines(features, clusters.centroids)
    own = cosine[np.arange(len(features)), clusters.ids]
    assert (cosine.max(axis=1) - own).max() < 1e-5
    assert clusters.objective == pytest.approx(own.mean(), abs=1e-5)
    assert clusters.nearest.shape == (K, 8)
    for cluster, nearest in enumerate(clusters.nearest):
        members = np.flatnonzero(clusters.ids == cluster)
        found = nearest[nearest >= 0]
        assert (nearest[len(found) :] == -1).all() and len(found) == min(8, len(members)) == len(set(found))
        assert set(found) <= set(members)
        assert own[found] == pytest.approx(np.sort(own[members])[::-1][: len(found)], abs=1e-5)


def test_separable_blobs_are_recovered() -> None:
    features, labels = blobs(2000, 8)
    (clusters,) = fit_clusters(features, [8], seed=0)
    check(features, clusters)
    report = cluster_report(clusters.ids, 8, labels)
    assert report["purity"] == 1.0
    assert report["nmi"] == pytest.approx(1.0)
    assert report["empty"] == 0
    assert clusters.objective > 0.95
    assert clusters.repaired == clusters.moved == 0


def test_an_id_is_that_of_the_largest_cosine_whatever_the_length_of_the_feature() -> None:
    # Searching the centroids by Euclidean distance with features as they come would favour, for long or short
    # features, centroids other than the one they were fitted to.
    features, _ = blobs(3000, 5)
    check(features, *fit_clusters(features, [12], seed=1))


def test_the_length_of_a_feature_has_no_say_in_the_centroids() -> None:
    features = blobs(3000, 5)[0].astype(np.float32)
    powers_of_two = 2.0 ** np.random.default_rng(0).integers(-4, 5, (3000, 1))  # so that directions stay the same bits
    stretched = features * powers_of_two.astype(np.float32)
    (first,), (second,) = fit_clusters(features, [12], seed=1), fit_clusters(stretched, [12], seed=1)
    assert np.array_equal(first.centroids, second.centroids)
    assert np.array_equal(first.ids, second.ids)


def test_the_seed_decides() -> None:
    features = np.random.default_rng(0).normal(size=(5000, 8)).astype(np.float16)
    first, again, other = (fit_clusters(features, [10], seed=seed, sample_size=2560)[0] for seed in (3, 3, 4))
    assert first.sample_size == 2560
    assert np.array_equal(first.ids, again.ids)
    assert np.array_equal(first.centroids, again.centroids)
    assert np.array_equal(first.nearest, again.nearest)
    assert not np.array_equal(first.ids, other.ids)


class Counted:
    """Features that allow what the protocol says and no more, and count how often a row is read."""

    def __init__(self, rows: np.ndarray) -> None:
        self._rows = rows
        self.shape = rows.shape
        self.reads = np.zeros(len(rows), int)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        assert isinstance(rows, slice) or (rows.dtype == np.int64 and (np.diff(rows) > 0).all())
        self.reads[rows] += 1
        return self._rows[rows]


def test_several_numbers_of_clusters_take_one_pass() -> None:
    features, _ = blobs(3000, 8)
    counted = Counted(features)
    few, many = fit_clusters(counted, [4, 8], seed=0, sample_size=500)
    assert few.repaired == many.repaired == 0
    assert counted.reads.sum() == 3000 + 2 * 500, "a sample for each, and one pass"
    for clusters, alone in zip((few, many), (4, 8), strict=True):
        check(features, clusters)
        assert np.array_equal(clusters.ids, fit_clusters(features, [alone], seed=0, sample_size=500)[0].ids)


def test_a_memmap_is_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features, _ = blobs(1000, 4)
    np.save(tmp_path / "features.npy", features)
    (whole,) = fit_clusters(features, [4], seed=0)
    monkeypatch.setattr("sgdm.annotate.feature_rows.BLOCK", 300)
    blocks: list[int] = []
    memmap = np.load(tmp_path / "features.npy", mmap_mode="r")
    (clusters,) = fit_clusters(memmap, [4], seed=0, advance=blocks.append)
    assert np.array_equal(clusters.ids, whole.ids)
    assert np.array_equal(clusters.nearest, whole.nearest)
    assert blocks == [300, 300, 300, 100]


@pytest.mark.parametrize("num_clusters", [0, 11])
def test_more_clusters_than_images_are_refused(num_clusters: int) -> None:
    with pytest.raises(ValueError, match=f"{num_clusters} clusters cannot be made of 10 images.*between 1 and 10"):
        fit_clusters(np.ones((10, 3), np.float16), [1, num_clusters], seed=0)


def test_more_clusters_than_the_sample_are_refused() -> None:
    with pytest.raises(ValueError, match="9 clusters cannot be fitted on a sample of 8 features"):
        fit_clusters(np.ones((10, 3), np.float16), [2, 9], seed=0, sample_size=8)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0])
@pytest.mark.parametrize("image", [17, 99])
def test_unusable_features_are_refused_by_image(bad: float, image: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sgdm.annotate.feature_rows.BLOCK", 30)
    features = np.random.default_rng(0).normal(size=(100, 3)).astype(np.float16)
    features[image] = bad
    with pytest.raises(ValueError, match=f"zero or not finite, the first that of image {image}"):
        fit_clusters(features, [2], seed=0)
    with pytest.raises(ValueError, match=f"the first that of image {image}"):
        for start in range(0, 100, 30):
            unit_rows(features, slice(start, start + 30))


@pytest.mark.parametrize("num_clusters", [1, 2, 19, 20])
def test_up_to_one_cluster_for_each_image(num_clusters: int) -> None:
    features, _ = blobs(20, 10)
    (clusters,) = fit_clusters(features, [num_clusters], seed=0)
    check(features, clusters)
    assert len(set(clusters.ids)) == num_clusters


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 400), st.data())
def test_no_cluster_is_empty_and_every_image_is_in_the_nearest(count: int, data: st.DataObject) -> None:
    num_clusters = data.draw(st.integers(1, count))
    sample_size = data.draw(st.integers(num_clusters, count))
    seed = data.draw(st.integers(0, 3))
    random = np.random.default_rng(seed)
    # Heavy tails: a few images far from all others.
    features = random.standard_t(1.5, (count, data.draw(st.integers(3, 8)))).astype(np.float32) + 3
    (clusters,) = fit_clusters(features, [num_clusters], seed=seed, sample_size=sample_size, iterations=5)
    check(features, clusters)
    assert cluster_report(clusters.ids, num_clusters)["empty"] == 0


def test_the_sample_grows_with_the_clusters_and_then_slowly() -> None:
    assert [default_sample_size(K) for K in (2, 256, 1000, 4096, 10_000, 100_000)] == [
        65_536, 65_536, 256_000, 2**20, 2**20, 3_900_000,
    ]  # fmt: skip


def test_centroids_are_means_of_their_features() -> None:
    sample = unit_rows(blobs(2000, 6)[0], slice(None))
    centroids = fit_centroids(sample, 6, seed=0)
    ids = (sample @ centroids.T).argmax(axis=1)
    means = np.stack([sample[ids == cluster].mean(axis=0) for cluster in range(6)])
    assert centroids == pytest.approx(means / np.linalg.norm(means, axis=1, keepdims=True), abs=1e-5)


def test_frequencies_count_empty_clusters() -> None:
    assert frequencies(np.array([0, 0, 2, 2], np.int32), 4).tolist() == [0.5, 0, 0.5, 0]


def test_many_clusters_start_from_two_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = unit_rows(np.random.default_rng(0).normal(size=(4000, 8)).astype(np.float32), slice(None))

    def mean_cosine(centroids: np.ndarray) -> float:
        assert centroids.shape == (200, 8) and centroids.dtype == np.float32
        assert np.linalg.norm(centroids, axis=1) == pytest.approx(np.ones(200), abs=1e-5)
        return float((sample @ centroids.T).max(axis=1).mean())

    flat, short = (mean_cosine(fit_centroids(sample, 200, seed=0, iterations=iterations)) for iterations in (30, 3))
    monkeypatch.setattr("sgdm.annotate.clusters.MANY_CLUSTERS", 200)
    two_levels = mean_cosine(fit_centroids(sample, 200, seed=0))
    assert short < two_levels
    assert two_levels == pytest.approx(flat, rel=0.01)


@pytest.mark.parametrize("copies", [0, 900])
def test_two_levels_where_parts_are_small(copies: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sgdm.annotate.clusters.MANY_CLUSTERS", 100)
    rows = np.random.default_rng(0).normal(size=(1000, 3)).astype(np.float32)
    rows[:copies] = rows[0]
    sample = unit_rows(rows, slice(None))
    assert fit_centroids(sample, 1000, seed=0).shape == (1000, 3), "a centroid for each"
    assert fit_centroids(sample, 999, seed=0).shape == (999, 3)
