"""Fidelity and diversity apart, by nearest neighbours: precision, recall, density, coverage.

A set's manifold is the union of balls around its features, each reaching to the k-th nearest neighbour within the set.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class PrecisionRecall(NamedTuple):
    """precision, recall, coverage in [0, 1]; density is about 1 where the sets agree and may be above it."""

    precision: float  # share of generated images inside the real manifold
    recall: float  # share of real images inside the generated manifold
    density: float  # mean number of real balls that hold a generated image, over k
    coverage: float  # share of real balls that hold a generated image


def precision_recall(
    real: np.ndarray, generated: np.ndarray, neighbours: int = 5, block: int = 2048
) -> PrecisionRecall:
    """Kynkäänniemi et al. (arXiv 1904.06991) and Naeem et al. (arXiv 2002.09797) over features [N, D] and [M, D].

    Balls are closed. Memory is bounded by blocks of `block` images against a whole set; results do not depend on it.
    Recall falls where there are fewer generated images, so compare equal numbers only. ValueError where a set has no
    k-th neighbour or features are not finite.
    """
    for name, features in (("real", real), ("generated", generated)):
        if len(features) <= neighbours:
            raise ValueError(f"{len(features)} {name} images have no {neighbours}th neighbour; use more images")
        if not np.isfinite(features).all():
            raise ValueError(f"features of {name} images are NaN or infinite; look at these images")
    # A shift changes no distance, and near the origin the products behind a distance cancel least.
    centre = real.mean(axis=0)
    real_points, generated_points = torch.from_numpy(real - centre), torch.from_numpy(generated - centre)
    real_radii = _radii(real_points, neighbours, block)
    generated_radii = _radii(generated_points, neighbours, block)

    real_balls = torch.zeros(len(generated_points))  # for each generated image, how many real balls hold it
    recalled = 0
    covered = 0
    for points, radii in zip(real_points.split(block), real_radii.split(block), strict=True):
        distances = torch.cdist(points, generated_points)
        held = distances <= radii[:, None]
        real_balls += held.sum(dim=0)
        covered += int(held.any(dim=1).sum())
        recalled += int((distances <= generated_radii).any(dim=1).sum())
    return PrecisionRecall(
        precision=float((real_balls > 0).double().mean()),
        recall=recalled / len(real_points),
        density=float(real_balls.double().mean()) / neighbours,
        coverage=covered / len(real_points),
    )


def _radii(points: Tensor, neighbours: int, block: int) -> Tensor:
    """Distance from each point [N, D] to its k-th neighbour, itself (the nearest) not counted: [N]."""
    return torch.cat([torch.cdist(part, points).kthvalue(neighbours + 1, dim=1).values for part in points.split(block)])
