"""LOST: where an object is, from dense features alone (Simeoni et al., Localizing objects with self-supervised
transformers and no labels, BMVC 2021, arXiv 2109.14279), for a batch of images at once.

Two patches are alike where the inner product of their features is positive. The patch that is like the fewest
others, the seed, is on the object: objects cover less of an image than what is behind them. The object is what is
alike to the seed and to the other rare patches that are like the seed.
"""

from __future__ import annotations

import torch
from torch import Tensor

EXPANSION = 1 / 12
"""k of the seed expansion, as a share of the patches: the paper's 100, of the 1,200 that a 640 x 480 image has."""


class Lost:
    """An object of each image among its patches that are left.

    The arithmetic is that of the features: what is decided by a sign may differ between devices where features differ
    in their last bits. Of equal degrees the first patch in row-major order counts as the rarer one.
    """

    def __init__(self, features: Tensor, expansion: float = EXPANSION) -> None:
        """features: float [B, D, N], a column a patch."""
        self._features = features
        # 1 or 0, not bool, so that a product sums them: exactly, and many times as fast on a CPU.
        self._alike = (features.mT @ features).gt_(0)
        self._num_candidates = max(1, round(expansion * features.shape[2]))

    def __call__(self, left: Tensor) -> tuple[Tensor, Tensor]:
        """bool [B, N], the patches of the object, and int64 [B, 1], its seed.

        Patches that are not in `left` (bool [B, N]) are in no degree, and are neither seed nor candidate nor object.
        Where none is left the object has no patch.
        """
        N = left.shape[1]
        degree = sum_of_rows(left, self._alike).long()
        order = degree * N + torch.arange(N, device=left.device)
        rarest = order.masked_fill(~left, N * (N + 1)).topk(self._num_candidates, dim=1, largest=False).indices
        seed = rarest[:, :1]
        like_seed = self._alike.take_along_dim(seed[:, :, None], dim=1)[:, 0] > 0
        candidates = torch.zeros_like(left).scatter(1, rarest, True)
        expanded = (candidates & like_seed).scatter(1, seed, True) & left  # the seed even where its feature is zero
        # Inner products with each of them add up to the inner product with their sum.
        total = sum_of_rows(sum_of_rows(expanded, self._features.mT), self._features)
        return (total > 0).scatter(1, seed, True) & left, seed


def sum_of_rows(weights: Tensor, matrices: Tensor) -> Tensor:
    """[B, M]: the rows of matrices [B, N, M], each times its weight in [B, N], of any dtype, and added."""
    # A product from the left reads matrices once; one from the right is a tenth as fast on a CPU.
    return (weights.to(matrices.dtype)[:, None] @ matrices)[:, 0]
