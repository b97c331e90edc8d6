"""Distances between two sets of features: Fréchet (of their Gaussians) and kernel (maximum mean discrepancy)."""

from __future__ import annotations

import numpy as np

ROUNDING = 1e-9  # of the two traces: what float64 may leave of a distance of zero


class FeaturesError(ValueError):
    """Features from which no distance can be computed."""


class NumericalError(ValueError):
    """A result that mathematics excludes: the linear algebra under NumPy is at fault."""


class Moments:
    """Mean and covariance of features, gathered batch by batch in float64 and mergeable across processes.

    count; mean: float64 [D]; scatter: float64 [D, D], the sum of outer products of what is left after the mean.
    """

    def __init__(self, dimension: int) -> None:
        self.count = 0
        self.mean = np.zeros(dimension)
        self.scatter = np.zeros((dimension, dimension))

    @classmethod
    def of(cls, features: np.ndarray, block: int = 8192) -> Moments:
        """Moments of features [N, D], by blocks so that no float64 copy of the whole set is made."""
        moments = cls(features.shape[1])
        for start in range(0, len(features), block):
            moments.add(features[start : start + block])
        return moments

    def add(self, features: np.ndarray) -> None:
        """Adds a batch of features [B, D]."""
        _check(features, self.mean.size)
        batch = Moments(self.mean.size)
        if len(features):
            batch.count = len(features)
            batch.mean = features.mean(axis=0, dtype=np.float64)
            centred = features - batch.mean
            batch.scatter = centred.T @ centred
        self.merge(batch)

    def merge(self, other: Moments) -> None:
        """Adds the images of `other` (Chan, Golub and LeVeque, 1983: no loss of digits where the mean is large)."""
        count = self.count + other.count
        if other.count == 0:
            return
        difference = other.mean - self.mean
        self.scatter += other.scatter
        self.scatter += np.outer(difference, difference * (self.count * other.count / count))
        self.mean = self.mean + difference * (other.count / count)
        self.count = count

    @property
    def covariance(self) -> np.ndarray:
        """Unbiased covariance [D, D]; FeaturesError for fewer than two images."""
        if self.count < 2:
            raise FeaturesError(f"a covariance needs at least 2 images, there are {self.count}")
        return self.scatter / (self.count - 1)


def frechet_distance(first: Moments, second: Moments) -> float:
    """||m1 - m2||² + tr(C1 + C2 - 2 (C1 C2)^½) of two Gaussians (Heusel et al., arXiv 1706.08500).

    Where Ci = Fi Fiᵀ, the eigenvalues of C1 C2 are the squared singular values of F1ᵀ F2, so the last trace is the sum
    of those singular values. Factors come from symmetric eigenvalues, which exist for singular covariances too (fewer
    images than dimensions), where a matrix square root of C1 C2 may be complex or fail without a word. Singular values
    of the product, and not eigenvalues of its square, keep all digits of small ones.
    """
    first_covariance, second_covariance = first.covariance, second.covariance
    if first.mean.size != second.mean.size:
        raise FeaturesError(f"features of {first.mean.size} and of {second.mean.size} dimensions have no distance")
    difference = first.mean - second.mean
    traces = np.trace(first_covariance) + np.trace(second_covariance)
    common = np.linalg.svd(_factor(first_covariance).T @ _factor(second_covariance), compute_uv=False).sum()
    distance = float(difference @ difference + traces - 2 * common)
    if not distance >= -ROUNDING * traces:  # also true for NaN
        raise NumericalError(f"Fréchet distance {distance} of covariances with traces {traces}; it cannot be negative")
    return max(distance, 0.0)


def kernel_distance(
    first: np.ndarray, second: np.ndarray, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> float:
    """KID (Bińkowski et al., arXiv 1801.01401): unbiased squared MMD under (x·y / D + 1)³, mean over random subsets.

    first, second: features [N, D]. Each subset draws `subset_size` images of either set without replacement. The value
    for two samples of one distribution scatters around zero and may be negative.
    """
    _check(first, second.shape[1])
    _check(second, first.shape[1])
    if not 2 <= subset_size <= min(len(first), len(second)):
        raise FeaturesError(
            f"subsets of {subset_size} images cannot be drawn from {len(first)} and {len(second)}; "
            "choose a subset size from 2 to the smaller number"
        )
    random = np.random.RandomState(seed)  # the generator whose numbers no NumPy version may change
    distances = np.empty(subsets)
    for index in range(subsets):
        x = first[random.choice(len(first), subset_size, replace=False)]
        y = second[random.choice(len(second), subset_size, replace=False)]
        within = _off_diagonal_sum(_kernel(x, x)) + _off_diagonal_sum(_kernel(y, y))
        across = _kernel(x, y).sum(dtype=np.float64)
        distances[index] = within / (subset_size * (subset_size - 1)) - 2 * across / subset_size**2
    return float(distances.mean())


def _check(features: np.ndarray, dimension: int) -> None:
    if features.ndim != 2 or features.shape[1] != dimension:
        raise FeaturesError(f"features are of shape {features.shape}, where [N, {dimension}] was expected")
    if not np.isfinite(features).all():
        bad = int((~np.isfinite(features)).any(axis=1).sum())
        raise FeaturesError(f"features of {bad} of {len(features)} images are NaN or infinite; look at these images")


def _factor(covariance: np.ndarray) -> np.ndarray:
    """F [D, rank] with F Fᵀ = covariance, over the eigenvalues that float64 can tell from zero."""
    values, vectors = np.linalg.eigh(covariance)
    present = values > values[-1] * values.size * np.finfo(np.float64).eps
    return vectors[:, present] * np.sqrt(values[present])


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    base = x @ y.T / x.shape[1] + 1
    return base * base * base


def _off_diagonal_sum(kernel: np.ndarray) -> float:
    return float(kernel.sum(dtype=np.float64) - np.trace(kernel, dtype=np.float64))
