from __future__ import annotations

import numpy as np
import pytest

from sgdm.annotate.clusters import cluster_report, fit_clusters, frequencies


def blobs(count: int, num_blobs: int, dimension: int = 16, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features [N, D] around `num_blobs` directions, with lengths that differ by a factor of a hundred."""
    random = np.random.default_rng(seed)
    directions = np.linalg.qr(random.normal(size=(dimension, dimension)))[0][:num_blobs]
    labels = random.integers(0, num_blobs, count)
    features = directions[labels] + 0.05 * random.normal(size=(count, dimension))
    return (features * random.uniform(0.1, 10, (count, 1))).astype(np.float16), labels


def test_separable_blobs_are_recovered() -> None:
    features, labels = blobs(2000, 8)
    clusters = fit_clusters(features, 8, seed=0)
    report = cluster_report(clusters.ids, 8, labels)
    assert report["purity"] == 1.0
    assert report["nmi"] == pytest.approx(1.0)
    assert report["empty"] == 0
    assert clusters.objective > 0.95


def test_an_id_is_that_of_the_largest_cosine_whatever_the_length_of_the_feature() -> None:
    # Searching the centroids by Euclidean distance with features as they come would favour, for long or short
    # features, centroids other than the one they were fitted to.
    features, _ = blobs(3000, 5)
    clusters = fit_clusters(features, 12, seed=1)
    lengths = np.linalg.norm(clusters.centroids, axis=1)
    assert lengths == pytest.approx(np.ones(12), abs=1e-5)
    exact = features.astype(np.float32)
    cosine = exact @ clusters.centroids.T / np.linalg.norm(exact, axis=1, keepdims=True)
    chosen = cosine[np.arange(len(features)), clusters.ids]
    assert (cosine.max(axis=1) - chosen).max() < 1e-5


def test_the_length_of_a_feature_has_no_say_in_the_centroids() -> None:
    features = blobs(3000, 5)[0].astype(np.float32)
    powers_of_two = 2.0 ** np.random.default_rng(0).integers(-4, 5, (3000, 1))  # so that directions stay the same bits
    stretched = features * powers_of_two.astype(np.float32)
    first, second = fit_clusters(features, 12, seed=1), fit_clusters(stretched, 12, seed=1)
    assert np.array_equal(first.centroids, second.centroids)
    assert np.array_equal(first.ids, second.ids)


def test_the_seed_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sgdm.annotate.clusters.SMALLEST_SAMPLE", 1000)
    features = np.random.default_rng(0).normal(size=(5000, 8)).astype(np.float16)
    first, again, other = (fit_clusters(features, 10, seed=seed) for seed in (3, 3, 4))
    assert first.sample_size == 2560
    assert np.array_equal(first.ids, again.ids)
    assert np.array_equal(first.centroids, again.centroids)
    assert not np.array_equal(first.ids, other.ids)


def test_a_memmap_is_read_in_blocks(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    features, _ = blobs(1000, 4)
    np.save(tmp_path / "features.npy", features)
    whole = fit_clusters(features, 4, seed=0)
    monkeypatch.setattr("sgdm.annotate.clusters.BLOCK", 300)
    blocks: list[int] = []
    memmap = np.load(tmp_path / "features.npy", mmap_mode="r")
    assert np.array_equal(fit_clusters(memmap, 4, seed=0, advance=blocks.append).ids, whole.ids)
    assert blocks == [300, 300, 300, 100]


@pytest.mark.parametrize("num_clusters", [0, 11])
def test_more_clusters_than_images_are_refused(num_clusters: int) -> None:
    with pytest.raises(ValueError, match=f"{num_clusters} clusters cannot be made of 10 images.*between 1 and 10"):
        fit_clusters(np.ones((10, 3), np.float16), num_clusters, seed=0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0])
def test_unusable_features_are_refused_by_image(bad: float) -> None:
    features = np.ones((100, 3), np.float16)
    features[17] = bad
    with pytest.raises(ValueError, match="zero or not finite, the first that of image 17"):
        fit_clusters(features, 2, seed=0)


def test_one_cluster_for_each_image() -> None:
    features, _ = blobs(20, 10)
    clusters = fit_clusters(features, 20, seed=0)
    assert clusters.ids.dtype == np.int32
    assert clusters.ids.min() >= 0 and clusters.ids.max() < 20


def test_report_of_a_table_done_by_hand() -> None:
    ids = np.array([0, 0, 0, 1, 1, 1], np.int32)
    labels = np.array([0, 0, 1, 1, 1, -1])
    report = cluster_report(ids, 3, labels)
    assert report["empty"] == 1 and report["largest"] == 3 and report["smallest"] == 0 and report["median"] == 3
    assert report["purity"] == pytest.approx(4 / 5)
    assert report["labelled"] == 5
    assert report["nmi"] == pytest.approx(0.4325380677663126)  # sklearn.metrics.normalized_mutual_info_score
    assert "purity" not in cluster_report(ids, 3, np.full(6, -1))
    assert "purity" not in cluster_report(ids, 3)


def test_frequencies_count_empty_clusters() -> None:
    assert frequencies(np.array([0, 0, 2, 2], np.int32), 4).tolist() == [0.5, 0, 0.5, 0]
