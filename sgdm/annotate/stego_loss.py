"""What STEGO learns from: how alike the features of two places are, against how alike their codes are.

Hamilton et al., Unsupervised Semantic Segmentation by Distilling Feature Correspondences, ICLR 2022, arXiv 2203.08414.
Codes of two places are drawn together as far as their features are more alike than a shift, and driven apart where
they are less. The places are of one image (same), of an image and one that looks like it (neighbour), and of an image
and any other (random).
"""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

T = TypeVar("T")


class OfPairs(NamedTuple, Generic[T]):
    """One thing for each kind of pair of images."""

    same: T
    neighbour: T
    random: T


Pair = tuple[Tensor, Tensor]
"""float [B, D, P] and [B, D, Q]: P places of each image, and Q of the image that it is compared with."""

EPSILON = 1e-20  # of a squared length


def sample_pairs(maps: Tensor, places: Pair) -> OfPairs[Pair]:
    """What the loss compares, of maps float [2 B, D, h, w]: of B random images, then of a neighbour of each.

    `places` [B, P, 2] are those in the first image of a pair, then those in the second one: x and y from -1 to 1, which
    are the centres of the outer patches. An image is compared with itself at the first places alone. The images are
    random already, so the one before another is a random other one.
    """
    images, neighbours = maps.chunk(2)
    here, there = places
    first = _at(images, here)
    return OfPairs((first, first), (first, _at(neighbours, there)), (first, _at(images, there).roll(1, 0)))


def distillation_loss(
    features: OfPairs[Pair], codes: OfPairs[Pair], shifts: OfPairs[float], weights: OfPairs[float]
) -> Tensor:
    """Equation 5: the weighted sum of the losses of the three kinds of pairs."""
    losses = [correlation_loss(*parts) for parts in zip(features, codes, shifts, strict=True)]
    return torch.stack([weight * loss for weight, loss in zip(weights, losses, strict=True)]).sum()


def correlation_loss(features: Pair, codes: Pair, shift: float) -> Tensor:
    """Equation 4, as a mean over pairs of places. Codes that point apart already are left alone (zero clamp)."""
    with torch.no_grad():
        attraction = centre(correspondence(*features)) - shift
    return -(attraction * correspondence(*codes).clamp_min(0)).mean()


def correspondence(first: Tensor, second: Tensor) -> Tensor:
    """float32 [B, P, Q], equation 1: cosines between the places of [B, D, P] and those of [B, D, Q]."""
    return unit(first).transpose(1, 2) @ unit(second)


def unit(vectors: Tensor) -> Tensor:
    """float32 vectors of length 1, over dimension 1; a zero stays, and is like nothing."""
    vectors = vectors.float()
    # Four times as fast on a CPU as F.normalize, whose norm is slow over any but the last dimension.
    return vectors * vectors.square().sum(dim=1, keepdim=True).clamp_min(EPSILON).rsqrt()


def centre(correspondences: Tensor) -> Tensor:
    """[B, P, Q], equation 3: each place loses its mean over the places of the other image.

    The mean over all pairs is given back: the shifts that the authors publish were found so.
    """
    means = correspondences.mean(dim=2, keepdim=True)
    return correspondences - means + means.mean()


def measured_shifts(features: OfPairs[Pair], shares: OfPairs[float]) -> OfPairs[float]:
    """The shifts that these shares of the pairs of places exceed, and attract, whatever the features."""
    return OfPairs(
        *(
            float(torch.quantile(centre(correspondence(*pair)).flatten(), 1 - share))
            for pair, share in zip(features, shares, strict=True)
        )
    )


def _at(maps: Tensor, places: Tensor) -> Tensor:
    """[B, D, P]: maps [B, D, h, w], bilinearly, at places [B, P, 2]."""
    return F.grid_sample(maps.float(), places[:, None], align_corners=True)[:, :, 0]
