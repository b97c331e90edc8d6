"""Refinement of centroids by what nearest neighbours agree on: TEMI, with centroids for a head.

Adaloglou, Michels, Kalisch and Kollmann, Exploring the limits of deep image clustering using pretrained models (BMVC
2023, arXiv 2303.17896): an image and a near neighbour belong to one cluster more often than k-means puts them there. A
student and a teacher, its moving average, give both images probabilities q_s and q_t of the clusters c, and

    - log sum_c (q_s(c | x) q_t(c | x'))^beta / p(c)

is made small, for both orders of a pair, with p the mean of the teacher's probabilities. beta = 1 would be pointwise
mutual information, which wants clusters of one size. In the paper the heads are networks; here a cluster's logit is the
cosine with its centroid over a temperature. So what comes out are centroids, and an image is in the cluster of the
largest cosine, as it was before. The paper's weights of pairs, and its averages over many heads, are left out.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sgdm.annotate.feature_rows import sample_rows
from sgdm.annotate.fit import fit
from sgdm.annotate.spectral import nearest_neighbours
from sgdm.progress import Advance, ignore

BETA = 0.6
NEIGHBOURS = 20
LARGEST_SAMPLE = 65_536  # features: neighbours are searched among all pairs
TEMPERATURE = 0.1
TEACHER_MOMENTUM = 0.996
SHARE_MOMENTUM = 0.9
BATCH = 512
LEARNING_RATE = 0.06
"""Over the root of D, as the numbers in rows of unit length are."""


class Heads(nn.Module):
    """Student and teacher: rows [K, D], whose products with features, over a temperature, are the clusters' logits.

    The rows count by their directions alone where they are `unit`; else a row that grows outweighs others.
    """

    teacher: Tensor
    shares: Tensor

    def __init__(self, rows: Tensor, unit: bool) -> None:
        super().__init__()
        self.unit = unit
        self.student = nn.Parameter(rows.clone())
        self.register_buffer("teacher", rows.clone())
        self.register_buffer("shares", torch.full((len(rows),), 1 / len(rows), device=rows.device))

    def loss(self, features: Tensor, neighbours: Tensor) -> Tensor:
        """The mean over float32 pairs [B, D], of unit length; the teacher's shares of clusters follow this batch."""
        both = torch.cat([features, neighbours])
        student = self._log_probabilities(both, self.student)
        with torch.no_grad():
            teacher = self._log_probabilities(both, self.teacher)
            self.shares.lerp_(teacher.exp().mean(dim=0), 1 - SHARE_MOMENTUM)
        of_the_other = torch.cat(teacher.chunk(2)[::-1])
        return mutual_information_loss(student, of_the_other, self.shares)

    def follow(self, step: int) -> None:
        """After a step, the teacher comes nearer to the student."""
        self.teacher.lerp_(self._rows(self.student), 1 - TEACHER_MOMENTUM)

    def result(self) -> Tensor:
        """float32 [K, D]: the teacher's rows."""
        return self._rows(self.teacher)

    def _log_probabilities(self, features: Tensor, rows: Tensor) -> Tensor:
        return F.log_softmax(features @ self._rows(rows).T / TEMPERATURE, dim=1)

    def _rows(self, rows: Tensor) -> Tensor:
        return F.normalize(rows, dim=1) if self.unit else rows


def mutual_information_loss(student: Tensor, teacher: Tensor, shares: Tensor) -> Tensor:
    """Mean of - log sum_c (q_s(c) q_t(c))^beta / p(c), from log probabilities [B, K] and shares [K]."""
    # The share of a cluster that is given up on may become 0 in float32.
    log_shares = shares.clamp_min(torch.finfo(shares.dtype).tiny).log()
    return -torch.logsumexp(BETA * (student + teacher) - log_shares, dim=1).mean()


def train_heads(
    heads: Heads,
    sample: np.ndarray,
    links: np.ndarray,
    *,
    steps: int,
    seed: int,
    checkpoint: Path | None = None,
    advance: Advance = ignore,
) -> None:
    """Trains on pairs of neighbours, 512 a step.

    `sample` is float32 [S, D] of unit length, `links` int64 [S, k] the neighbours of each.
    `checkpoint` is a file that belongs to this very training (fit.py).
    """
    device = heads.student.device
    features, neighbours = torch.from_numpy(sample).to(device), torch.from_numpy(links).to(device)

    def loss(step: int, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(features), (BATCH,), generator=generator, device=device)
        column = torch.randint(neighbours.shape[1], (BATCH,), generator=generator, device=device)
        return heads.loss(features[rows], features[neighbours[rows, column]])

    fit(
        heads,
        loss,
        steps=steps,
        batch=BATCH,
        learning_rate=LEARNING_RATE / math.sqrt(sample.shape[1]),
        seed=seed,
        weight_decay=0.0,
        after_step=heads.follow,
        checkpoint=checkpoint,
        advance=advance,
    )


def refine_centroids(
    sample: np.ndarray,
    centroids: np.ndarray,
    *,
    steps: int,
    seed: int,
    device: torch.device,
    checkpoint: Path | None = None,
    advance: Advance = ignore,
) -> np.ndarray:
    """float32 [K, D], of unit length: `centroids` [K, D] after training on pairs of the sample's nearest neighbours.

    `sample` is float32 [S, D] of unit length, of which at most 65,536 are used, at random. A step takes 512 pairs.
    `checkpoint` is a file that belongs to this very training (fit.py). ValueError where there is no pair.
    """
    sample = sample[sample_rows(len(sample), min(len(sample), LARGEST_SAMPLE), seed)]
    heads = Heads(torch.from_numpy(centroids).to(device), unit=True)
    links = neighbours_of(sample)
    train_heads(heads, sample, links, steps=steps, seed=seed, checkpoint=checkpoint, advance=advance)
    return heads.result().cpu().numpy()


def neighbours_of(sample: np.ndarray) -> np.ndarray:
    """int64 [S, 20], or as many as there are: the nearest neighbours of each of float32 [S, D], S >= 2."""
    if len(sample) < 2:
        raise ValueError(f"neighbours cannot be found among {len(sample)} features: give at least 2")
    return nearest_neighbours(sample, min(NEIGHBOURS, len(sample) - 1))
