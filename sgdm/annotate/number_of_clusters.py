"""How many clusters images have room for: the upper bound of cluster-conditioned diffusion.

Adaloglou, Kaiser, Michels and Kollmann, Rethinking cluster-conditioned diffusion models for label-free image synthesis
(WACV 2025, arXiv 2403.00570): clusters beyond the visual groups of a data set make samples worse, and TEMI shows where
that begins. Trained from a random start with beta = 0.6, it leaves clusters without an image as soon as there are more
than it finds groups for. The largest K of which 96 % are used is the bound. k-means cannot show it: it leaves no
cluster empty, whatever K. Nor can rows of unit length, each of which is nearest to something: here rows may grow, and
outweigh others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from sgdm.annotate.feature_rows import Features, sample_rows, unit_rows
from sgdm.annotate.temi import LARGEST_SAMPLE, Heads, neighbours_of, train_heads
from sgdm.progress import Advance, ignore

LEAST_USED = 0.96
STEPS = 1000
SHORT = 0.1
"""Length of a row at the start: probabilities are nearly equal, and clusters part as they are trained."""


class Use(NamedTuple):
    num_clusters: int  # K
    used: int  # clusters that hold an image of the sample

    @property
    def ratio(self) -> float:
        return self.used / self.num_clusters


class Suggestion(NamedTuple):
    num_clusters: int  # the bound
    table: list[Use]  # K ascending
    reason: str  # a sentence


def suggest_num_clusters(
    features: Features,
    candidates: Sequence[int],
    *,
    seed: int,
    device: torch.device,
    steps: int = STEPS,
    advance: Advance = ignore,
) -> Suggestion:
    """The largest of the candidate K of which TEMI uses at least 96 %, by training for each on at most 65,536 images.

    The bound depends on how long is trained: 512 `steps` pairs, as many for every K. `advance` is told of pairs.
    ValueError where there are no candidates, or more clusters than images.
    """
    candidates = sorted(set(candidates))
    size = min(len(features), LARGEST_SAMPLE)
    if not candidates or candidates[0] < 1 or candidates[-1] > size:
        raise ValueError(f"candidates for the number of clusters are {candidates}: give some of 1 to {size}")
    sample = unit_rows(features, sample_rows(len(features), size, seed))
    links = neighbours_of(sample)
    table = []
    for K in candidates:
        heads = Heads(_short_rows(K, sample.shape[1], seed).to(device), unit=False)
        train_heads(heads, sample, links, steps=steps, seed=seed, advance=advance)
        table.append(Use(K, _used(heads, torch.from_numpy(sample).to(device))))
    return _suggestion(table)


def _short_rows(num_clusters: int, dimension: int, seed: int) -> torch.Tensor:
    random = np.random.default_rng(seed).standard_normal((num_clusters, dimension), np.float32)
    return torch.from_numpy(random) * (SHORT / math.sqrt(dimension))


def _used(heads: Heads, sample: torch.Tensor) -> int:
    rows = heads.result()
    return len(torch.cat([(block @ rows.T).argmax(dim=1) for block in sample.split(4096)]).unique())


def _suggestion(table: list[Use]) -> Suggestion:
    enough = [use for use in table if use.ratio >= LEAST_USED]
    if not enough:
        least = table[0]
        reason = (
            f"TEMI uses only {least.used} of {least.num_clusters} clusters, the fewest that were tried: try fewer; at "
            f"least {LEAST_USED:.0%} should be used"
        )
        return Suggestion(least.num_clusters, table, reason)
    bound = enough[-1]
    reason = f"TEMI from a random start uses {bound.used} of {bound.num_clusters} clusters"
    more = [use for use in table if use.num_clusters > bound.num_clusters]
    reason += f", and {more[0].used} of {more[0].num_clusters}" if more else ", the most that were tried"
    return Suggestion(bound.num_clusters, table, f"{reason}: the bound is where it uses at least {LEAST_USED:.0%}")
