from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from cleanfid import fid as cleanfid
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

from sgdm.metrics.frechet import (
    FeaturesError,
    Moments,
    NumericalError,
    check_linear_algebra,
    frechet_distance,
    kernel_distance,
)


def make_features(count: int, dimension: int, seed: int, shift: float = 0.0) -> np.ndarray:
    """Correlated, positive, unevenly scaled features, as a network's pooled activations are."""
    random = np.random.default_rng(seed)
    mixing = random.standard_normal((dimension, dimension)) * np.exp(-np.arange(dimension) / dimension * 3)
    return np.abs(random.standard_normal((count, dimension)) @ mixing + shift).astype(np.float32)


def test_moments_equal_numpy_mean_and_covariance() -> None:
    features = make_features(100, 7, seed=0)
    moments = Moments.of(features, block=33)
    np.testing.assert_allclose(moments.mean, features.mean(axis=0, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(moments.covariance, np.cov(features.T.astype(np.float64)), rtol=1e-10)


@given(cuts=st.lists(st.integers(0, 40), max_size=5), offset=st.sampled_from([0.0, 1e4]))
@settings(deadline=None)
def test_moments_of_batches_are_those_of_the_whole(cuts: list[int], offset: float) -> None:
    features = make_features(40, 5, seed=1) + np.float32(offset)
    merged = Moments(5)
    for part in np.split(features, sorted(cuts)):
        merged.add(torch.from_numpy(part))
    whole = Moments.of(features)
    assert merged.count == 40
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-12)
    np.testing.assert_allclose(merged.covariance, whole.covariance, rtol=1e-9, atol=1e-9)


def test_frechet_distance_agrees_with_clean_fid_and_torch_fidelity() -> None:
    first, second = make_features(300, 32, seed=2), make_features(200, 32, seed=3, shift=0.3)
    ours = frechet_distance(Moments.of(first), Moments.of(second))
    statistics = [fid_features_to_statistics(torch.from_numpy(x.astype(np.float64))) for x in (first, second)]
    assert ours == pytest.approx(fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID], rel=1e-4)
    flat = [part for one in statistics for part in (one["mu"], one["sigma"])]
    assert ours == pytest.approx(cleanfid.frechet_distance(*flat), rel=1e-4)


def test_frechet_distance_of_diagonal_gaussians_has_its_closed_form() -> None:
    first, second = Moments(3), Moments(3)
    first.count = second.count = 11
    first.mean, second.mean = (torch.tensor(mean, dtype=torch.float64) for mean in ([0, 1, 2], [1, 1, 4]))
    first.scatter, second.scatter = (
        10 * torch.diag(torch.tensor(variances, dtype=torch.float64)) for variances in ([1, 4, 9], [4, 4, 1])
    )
    deviations = (2 - 1) ** 2 + (2 - 2) ** 2 + (3 - 1) ** 2
    assert frechet_distance(first, second) == pytest.approx(1 + 4 + deviations, rel=1e-12)


@pytest.mark.parametrize("count", [20, 200], ids=["singular", "regular"])
def test_frechet_distance_of_a_set_to_itself_is_zero(count: int) -> None:
    features = make_features(count, 64, seed=4)
    again = Moments.of(features[::-1], block=7)
    assert frechet_distance(Moments.of(features), again) < 1e-6 * np.trace(again.covariance)


def test_frechet_distance_of_singular_covariances_equals_that_in_their_span() -> None:
    # 12 images in 10 dimensions, then turned into 50: the covariance has 40 zeros and the distance must not change.
    first, second = make_features(12, 10, seed=5), make_features(12, 10, seed=6)
    turned = np.linalg.qr(np.random.default_rng(7).standard_normal((50, 10)))[0].T
    small = frechet_distance(Moments.of(first), Moments.of(second))
    large = frechet_distance(Moments.of(first @ turned), Moments.of(second @ turned))
    assert large == pytest.approx(small, rel=1e-5)


@given(seed=st.integers(0, 1000), shift=st.floats(0, 2))
@settings(deadline=None, max_examples=25)
def test_frechet_distance_is_symmetric_and_not_negative(seed: int, shift: float) -> None:
    first, second = Moments.of(make_features(20, 24, seed)), Moments.of(make_features(30, 24, seed + 1, shift))
    distance = frechet_distance(first, second)
    assert distance >= 0
    assert frechet_distance(second, first) == pytest.approx(distance, rel=1e-6)


def test_features_without_a_distance_are_refused() -> None:
    good = Moments.of(make_features(10, 4, seed=8))
    for value in (np.nan, np.inf):
        bad = make_features(10, 4, seed=8)
        bad[3, 2] = value
        with pytest.raises(FeaturesError, match="among those of 10 images are NaN or infinite"):
            frechet_distance(good, Moments.of(bad))
        with pytest.raises(FeaturesError, match="1 of 10 images"):
            kernel_distance(bad, bad, subset_size=5)
    with pytest.raises(FeaturesError, match="at least 2"):
        frechet_distance(good, Moments.of(make_features(1, 4, seed=8)))
    with pytest.raises(FeaturesError, match="4 and of 5"):
        frechet_distance(good, Moments.of(make_features(10, 5, seed=8)))


def test_kernel_distance_agrees_with_torch_fidelity_on_its_subsets() -> None:
    first, second = make_features(120, 16, seed=9), make_features(90, 16, seed=10, shift=0.5)
    ours = kernel_distance(first, second, subsets=7, subset_size=50, seed=2020)
    theirs = kid_features_to_metric(
        torch.from_numpy(first.astype(np.float64)),
        torch.from_numpy(second.astype(np.float64)),
        kid_subsets=7,
        kid_subset_size=50,
        kid_kernel="poly",
        kid_kernel_poly_degree=3,
        kid_kernel_poly_gamma=None,
        kid_kernel_poly_coef0=1,
        rng_seed=2020,
        verbose=False,
    )
    assert ours == pytest.approx(theirs[KEY_METRIC_KID_MEAN], rel=1e-4)


def test_kernel_distance_agrees_with_clean_fid_on_whole_sets() -> None:
    first, second = make_features(60, 16, seed=11), make_features(60, 16, seed=12, shift=0.5)
    theirs = cleanfid.kernel_distance(first.astype(np.float64), second.astype(np.float64), num_subsets=1)
    assert kernel_distance(first, second, subsets=1, subset_size=60) == pytest.approx(theirs, rel=1e-4)


def test_kernel_distance_scatters_around_zero_for_one_distribution() -> None:
    random = np.random.default_rng(13)
    pairs = [random.standard_normal((2, 200, 8)).astype(np.float32) for _ in range(20)]
    values = [kernel_distance(first, second, subsets=2, subset_size=150) for first, second in pairs]
    shifted = kernel_distance(pairs[0][0], pairs[0][1] + 0.5, subsets=2, subset_size=150)
    assert min(values) < 0 < max(values)
    assert abs(np.mean(values)) < 0.05 * shifted


@pytest.mark.parametrize("size", [1, 31])
def test_kernel_subsets_that_cannot_be_drawn_are_refused(size: int) -> None:
    features = make_features(30, 4, seed=14)
    with pytest.raises(FeaturesError, match=f"subsets of {size} images"):
        kernel_distance(features, features, subset_size=size)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_moments_of_processes_sum_to_those_of_the_whole(offset: float) -> None:
    """Three processes, the second of which has no images; their tensors are summed together once each."""
    features = make_features(40, 5, seed=1) + np.float32(offset)
    parts = [Moments.of(part) if len(part) else Moments(5) for part in np.split(features, [25, 25])]
    exchange = Exchange(len(parts))
    with ThreadPoolExecutor(len(parts)) as threads:
        list(threads.map(lambda moments: moments.reduce(exchange.all_reduce), parts))
    whole = Moments.of(features)
    assert exchange.sums == 2
    for moments in parts:
        assert moments.count == 40
        np.testing.assert_allclose(moments.mean, whole.mean, rtol=1e-12)
        np.testing.assert_allclose(moments.covariance, whole.covariance, rtol=1e-9, atol=1e-9)


class Exchange:
    """Sums tensors of so many threads in place."""

    def __init__(self, parties: int) -> None:
        self.waiting: list[torch.Tensor] = []
        self.sums = 0
        self.barrier = threading.Barrier(parties, action=self.add_up)
        self.lock = threading.Lock()

    def all_reduce(self, tensor: torch.Tensor) -> None:
        with self.lock:
            self.waiting.append(tensor)
        self.barrier.wait(timeout=20)

    def add_up(self) -> None:
        total = torch.stack(self.waiting).sum(dim=0)
        for tensor in self.waiting:
            tensor.copy_(total)
        self.waiting = []
        self.sums += 1


def test_the_self_test_passes_here() -> None:
    check_linear_algebra()


@pytest.mark.parametrize("factor", [0.999, 1.001])
@pytest.mark.parametrize("name", ["eigh", "svd"])
def test_the_self_test_finds_wrong_linear_algebra(name: str, factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """As reported of a build of OpenBLAS: results that are a little off, without an error."""
    right = getattr(np.linalg, name)

    def wrong(matrix: np.ndarray, **options: bool) -> object:
        found = right(matrix, **options)
        return found * factor if isinstance(found, np.ndarray) else (found[0] * factor, found[1])

    monkeypatch.setattr(np.linalg, name, wrong)
    with pytest.raises(NumericalError, match="Fréchet distance"):
        check_linear_algebra()
