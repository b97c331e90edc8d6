"""Distances between two sets of features: Fréchet (of their Gaussians) and kernel (maximum mean discrepancy)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ROUNDING = 1e-9  # of the two traces: what float64 may leave of a distance of zero


class FeaturesError(ValueError):
    """Features from which no distance can be computed."""


class NumericalError(ValueError):
    """A result that mathematics excludes: the linear algebra under NumPy is at fault."""


class Moments:
    """Mean and covariance of features, gathered batch by batch in float64 where the features are, and summed over
    processes.

    count; mean: float64 [D]; scatter: float64 [D, D], the sum of outer products of what is left after the mean.
    """

    def __init__(self, dimension: int, device: torch.device | str = "cpu") -> None:
        self.count = 0
        self.mean = torch.zeros(dimension, dtype=torch.float64, device=device)
        self.scatter = torch.zeros(dimension, dimension, dtype=torch.float64, device=device)
        self._factor: NDArray[np.float64] | None = None

    @classmethod
    def of(cls, features: np.ndarray | Tensor, block: int = 8192) -> Moments:
        """Moments of features [N, D], by blocks so that no float64 copy of the whole set is made."""
        tensor = features if isinstance(features, Tensor) else torch.from_numpy(np.ascontiguousarray(features))
        moments = cls(tensor.shape[1], tensor.device)
        for part in tensor.split(block):
            moments.add(part)
        return moments

    @property
    def dimension(self) -> int:
        return self.mean.numel()

    def add(self, features: Tensor) -> None:
        """Adds a batch of features [B, D]. The host does not wait for the device: features that are not finite show
        when the moments are read."""
        if features.dim() != 2 or features.shape[1] != self.dimension:
            raise FeaturesError(
                f"features are of shape {tuple(features.shape)}, where [N, {self.dimension}] was expected"
            )
        if len(features):
            exact = features.double()
            mean = exact.mean(dim=0)
            centred = exact - mean
            self._merge(len(features), mean, centred.T @ centred)

    def reduce(self, all_reduce: Callable[[Tensor], object]) -> None:
        """Adds the images of all processes, each of which calls it. `all_reduce` sums a tensor over them in place.

        Every tensor is summed once: first the sums of features, then the scatter of each process around the common
        mean, so that nothing cancels.
        """
        total = torch.cat((self.mean * self.count, self.mean.new_tensor([self.count])))
        all_reduce(total)
        count = round(float(total[-1]))
        if count == 0:
            return
        mean = total[:-1] / count
        difference = self.mean - mean
        self.scatter += self.count * torch.outer(difference, difference)
        all_reduce(self.scatter)
        self.count, self.mean, self._factor = count, mean, None

    @property
    def covariance(self) -> NDArray[np.float64]:
        """Unbiased covariance [D, D]; FeaturesError for fewer than two images, and for features that are not finite."""
        if self.count < 2:
            raise FeaturesError(f"a covariance needs at least 2 images, there are {self.count}")
        if not bool(self.scatter.isfinite().all()):
            raise FeaturesError(
                f"features among those of {self.count} images are NaN or infinite: look at these images"
            )
        return self.scatter.cpu().numpy() / (self.count - 1)

    @property
    def factor(self) -> NDArray[np.float64]:
        """F [D, rank] with F F^T = covariance, over the eigenvalues that float64 can tell from zero; computed once."""
        if self._factor is None:
            values, vectors = np.linalg.eigh(self.covariance)
            present = values > values[-1] * values.size * np.finfo(np.float64).eps
            self._factor = vectors[:, present] * np.sqrt(values[present])
        return self._factor

    def _merge(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        """Chan, Golub and LeVeque, 1983: no loss of digits where the mean is large."""
        total = self.count + count
        difference = mean - self.mean
        self.scatter += scatter
        self.scatter += torch.outer(difference, difference * (self.count * count / total))
        self.mean = self.mean + difference * (count / total)
        self.count, self._factor = total, None


def frechet_distance(first: Moments, second: Moments) -> float:
    """||m1 - m2||² + tr(C1 + C2 - 2 (C1 C2)^½) of two Gaussians (Heusel et al., arXiv 1706.08500).

    Where Ci = Fi Fiᵀ, the eigenvalues of C1 C2 are the squared singular values of F1ᵀ F2, so the last trace is the sum
    of those singular values. Factors come from symmetric eigenvalues, which exist for singular covariances too (fewer
    images than dimensions), where a matrix square root of C1 C2 may be complex or fail without a word. Singular values
    of the product, and not eigenvalues of its square, keep all digits of small ones.
    """
    if first.dimension != second.dimension:
        raise FeaturesError(f"features of {first.dimension} and of {second.dimension} dimensions have no distance")
    traces = float(np.trace(first.covariance) + np.trace(second.covariance))
    difference = (first.mean - second.mean).cpu().numpy()
    common = np.linalg.svd(first.factor.T @ second.factor, compute_uv=False).sum()
    distance = float(difference @ difference + traces - 2 * common)
    if not distance >= -ROUNDING * traces:  # also true for NaN
        raise NumericalError(f"Fréchet distance {distance} of covariances with traces {traces}; it cannot be negative")
    return max(distance, 0.0)


def check_linear_algebra() -> None:
    """NumericalError where this machine computes a known distance wrongly, as some builds of BLAS have done without a
    word. Takes a fraction of a second."""
    D, random = 192, np.random.default_rng(0)
    axes = np.linalg.qr(random.standard_normal((D, D)))[0]
    deviations = np.linspace(0.1, 3, D), np.r_[np.geomspace(1e-3, 5, D // 2), np.zeros(D - D // 2)]  # one is singular
    sets = []
    for number, deviation in enumerate(deviations):
        moments = Moments(D)
        moments.count = 2
        moments.mean = torch.full((D,), float(number), dtype=torch.float64)
        moments.scatter = torch.from_numpy((axes * deviation**2) @ axes.T)
        sets.append(moments)
    expected = D + float(((deviations[0] - deviations[1]) ** 2).sum())
    for first, second, known in (*zip(sets, sets, (0.0, 0.0), strict=True), (sets[0], sets[1], expected)):
        found = frechet_distance(first, second)
        if not abs(found - known) < 1e-6 * expected:
            raise NumericalError(
                f"the Fréchet distance of two known Gaussians is {found} here, and should be {known}: the linear "
                f"algebra under NumPy {np.__version__} is at fault; another build of NumPy helps"
            )


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


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    base = x @ y.T / x.shape[1] + 1
    return base * base * base


def _off_diagonal_sum(kernel: np.ndarray) -> float:
    return float(kernel.sum(dtype=np.float64) - np.trace(kernel, dtype=np.float64))
