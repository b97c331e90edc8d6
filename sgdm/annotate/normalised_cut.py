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
STEPS = 40  # of Lanczos' method; in 256 scenes 24 gave LAPACK's cut of every image, patch by patch
LEAST_EIGENVALUE = 1e-3  # 1 - lambda; it is 0 where every patch is linked with every other, and any cut as good
ROUNDING = 1e-5  # a new direction shorter than this is rounding: the method has ended, and it stays short


class NormalisedCut:
    """An object of each image among its patches that are left: the side of the cut with the largest |y|."""

    def __init__(self, features: Tensor, threshold: float = THRESHOLD) -> None:
        """features: float [B, D, N], a column a patch."""
        unit = F.normalize(features, dim=1)
        self._weights = (unit.mT @ unit).ge_(threshold).clamp_(min=WEAK)
        # Noise, to which no eigenvector is orthogonal, and the same on every device.
        self._start = torch.randn(features.shape[2], generator=torch.Generator().manual_seed(0)).to(features)

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
        basis, products = (left.new_zeros(len(left), STEPS + 1, left.shape[1], dtype=scale.dtype) for _ in range(2))
        basis[:, 0] = F.normalize(left * degree.sqrt(), dim=1)
        vector = scale * self._start
        for step in range(1, STEPS + 1):
            basis[:, step] = _orthogonal(vector, basis[:, :step])
            vector = scale * sum_of_rows(scale * basis[:, step], self._weights)
            products[:, step] = vector
        krylov = basis[:, 1:]
        projected = krylov @ products[:, 1:].mT
        # In float64, as LAPACK's float32 gives up on some.
        values, vectors = torch.linalg.eigh(projected.double())
        y = scale * sum_of_rows(vectors[:, :, -1], krylov)
        return y.masked_fill(values[:, -1:] < LEAST_EIGENVALUE, 0)


def _orthogonal(vector: Tensor, basis: Tensor) -> Tensor:
    """[B, N]: the direction, of unit length, of what of vectors [B, N] is orthogonal to orthonormal [B, M, N]."""
    for _ in range(2):  # the second time takes away what rounding left, the first time, of a small difference
        vector = vector - sum_of_rows(sum_of_rows(vector, basis.mT), basis)
    return F.normalize(vector, dim=1, eps=ROUNDING)
