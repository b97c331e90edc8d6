"""Normalised cut: where an object is, from dense features alone, for a batch of images at once.

As TokenCut does it (Wang et al., Self-supervised transformers for unsupervised object discovery using normalized cut,
CVPR 2022, arXiv 2202.11539). Patches are the nodes of a graph, and those are linked whose features have a large cosine.
The cut that severs the least, relative to the links of each side, is relaxed to the second smallest eigenvector of
(D - W) y = lambda D y (Shi and Malik, Normalized cuts and image segmentation, PAMI 2000), split at its mean.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sgdm.annotate.lost import sum_of_rows

THRESHOLD = 0.2  # the cosine from which on two patches are linked; TokenCut's tau
WEAK = 1e-5  # weight of the link between any others, so that the graph hangs together; TokenCut's epsilon
STEPS = 40  # of Lanczos' method: on scenes, all but 2 % of cuts were those of LAPACK, patch by patch
LEAST_EIGENVALUE = 1e-3  # 1 - lambda; it is 0 where every patch is linked with every other, and any cut as good
ROUNDING = 1e-5  # a new direction shorter than this is rounding: the method has ended, and it stays short


class NormalisedCut:
    """An object of each image among its patches that are left: the side of the cut with the largest |y|."""

    def __init__(self, features: Tensor, threshold: float = THRESHOLD) -> None:
        """features: float [B, D, N], a column a patch."""
        unit = F.normalize(features, dim=1)
        self._weights = (unit.mT @ unit).ge_(threshold).clamp_(min=WEAK)

    def __call__(self, left: Tensor) -> tuple[Tensor, Tensor]:
        """bool [B, N], the patches of the object, and int64 [B, 1], that of the largest |y|.

        Patches that are not in `left` (bool [B, N]) are not in the graph. Where there is nothing to cut the object is
        all that is left.
        """
        y = self.eigenvector(left)
        seed = y.abs().masked_fill(~left, -1).argmax(dim=1, keepdim=True)
        above = y * left.sum(dim=1, keepdim=True) > y.sum(dim=1, keepdim=True)
        return (above == above.gather(1, seed)) & left, seed

    def eigenvector(self, left: Tensor) -> Tensor:
        """float [B, N]: y of the graph of the patches in `left`, 0 elsewhere; all 0 where there is nothing to cut.

        With z = D^1/2 y it is that of the second largest eigenvalue of D^-1/2 W D^-1/2; the largest is 1, that of
        D^1/2 1. Lanczos' method, orthogonal to that vector and in each step to all before, finds it with products
        alone.
        """
        degree = sum_of_rows(left, self._weights)
        scale = left * degree.clamp_min(WEAK).rsqrt()
        basis = [F.normalize(left * degree.sqrt(), dim=1)]
        products = []
        vector = scale * _noise(scale)
        for _ in range(STEPS):
            basis.append(_orthogonal(vector, torch.stack(basis, dim=1)))
            vector = scale * sum_of_rows(scale * basis[-1], self._weights)
            products.append(vector)
        krylov = torch.stack(basis[1:], dim=1)
        projected = krylov @ torch.stack(products, dim=2)
        # In float64, as LAPACK's float32 gives up on some.
        values, vectors = torch.linalg.eigh(projected.double())
        y = scale * sum_of_rows(vectors[:, :, -1], krylov)
        return y.masked_fill(values[:, -1:] < LEAST_EIGENVALUE, 0)


def _orthogonal(vector: Tensor, basis: Tensor) -> Tensor:
    """[B, N]: the direction, of unit length, of what of vectors [B, N] is orthogonal to orthonormal [B, M, N]."""
    for _ in range(2):  # the second time takes away what rounding left, the first time, of a small difference
        vector = vector - sum_of_rows(sum_of_rows(vector, basis.mT), basis)
    return F.normalize(vector, dim=1, eps=ROUNDING)


def _noise(like: Tensor) -> Tensor:
    """[N], the same numbers on every device, for a start that no eigenvector is orthogonal to."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(like.shape[1], generator=generator).to(like)
