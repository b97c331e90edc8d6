"""What sampled images are of: clusters, and the layouts of training images, by the number of the image."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from engine.config import Config
from engine.guidance import Guidance, make_guides
from sgdm.conditions import Condition, make_condition
from sgdm.data.guides import Guides
from sgdm.ragged import Boxes, RunLengths

EXAMPLE_LAYOUTS, EXAMPLES = 6, 6
"""For the report: so many images of each of so many layouts."""


class Subjects(NamedTuple):
    """Image n shows row `rows[n]` of the guides."""

    guides: Guides
    rows: NDArray[np.int64]

    def of(self, numbers: NDArray[np.int64], segments: int) -> Condition | None:
        return make_condition(*self.guides.draw(self.rows[numbers]), segments)


def choose_subjects(
    config: Config, guidance: Guidance, images: int, seed: int, device: torch.device
) -> Subjects | None:
    """What a run's samples are of; None where nothing guides.

    A layout, with the cluster that goes with it, is that of a random training image. Clusters alone are drawn as
    sampling.clusters says, or are all sampling.cluster. What image n is of depends on (seed, n) alone.
    """
    if guidance.layout is not None:
        rows = layout_rows(guidance.layout, images, seed)
        return Subjects(make_guides(config, guidance.clusters, guidance.layout, device), rows)
    if guidance.frequencies is None:
        return None
    if config.sampling.cluster is not None:
        ids = np.full(images, config.sampling.cluster)
    elif config.sampling.clusters == "balanced":
        ids = balanced_clusters(guidance.frequencies, images, seed)
    else:
        ids = draw_clusters(guidance.frequencies, images, seed)
    return Subjects(make_guides(config, ids, None, device), np.arange(images))


def describe_subjects(config: Config) -> str:
    """In words; samples are compared with samples of the same."""
    if config.annotation.layout != "none":
        return "layouts of training images"
    if not config.annotation.num_clusters:
        return "nothing"
    if config.sampling.cluster is not None:
        return f"cluster {config.sampling.cluster}"
    return {"frequency": "clusters by frequency", "balanced": "all clusters alike"}[config.sampling.clusters]


def example_subjects(config: Config, guidance: Guidance, device: torch.device) -> Subjects | None:
    """The first layouts of the samples, each several times over, to be looked at; None without layouts."""
    if guidance.layout is None:
        return None
    drawn = layout_rows(guidance.layout, config.sampling.images, config.seed)
    guides = make_guides(config, guidance.clusters, guidance.layout, device)
    return Subjects(guides, np.repeat(drawn[:EXAMPLE_LAYOUTS], EXAMPLES))


def layout_rows(layout: Boxes | RunLengths, images: int, seed: int) -> NDArray[np.int64]:
    """The training images [images] whose layouts the samples have."""
    return np.random.default_rng(seed).integers(0, layout.num_images, images)


def draw_clusters(frequencies: NDArray[np.float64], images: int, seed: int) -> NDArray[np.int64]:
    """Cluster ids [images] drawn by the clusters' share of the training images; id n depends on (seed, n) alone."""
    uniform = np.random.default_rng(seed).random(images)
    ids = np.searchsorted(np.cumsum(frequencies), uniform * frequencies.sum(), side="right")
    return np.minimum(ids, len(frequencies) - 1)


def balanced_clusters(frequencies: NDArray[np.float64], images: int, seed: int) -> NDArray[np.int64]:
    """Cluster ids [images], all that have training images in turns, each turn in an order of its own; id n depends on
    (seed, n) alone."""
    used = np.flatnonzero(frequencies)
    turns = range(-(-images // len(used)))
    return np.concatenate([np.random.default_rng([seed, turn]).permutation(used) for turn in turns])[:images]


def tell(subjects: Subjects | None, numbers: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """What a file of samples says of its images: cluster int64 [n], -1 without; where a layout guides, the row of the
    training image it is of, and the layout as drawn, uint8 [n, H, W]."""
    if subjects is None:
        return {"cluster": np.full(len(numbers), -1)}
    cluster, layout = subjects.guides.draw(subjects.rows[numbers])
    found = {"cluster": np.full(len(numbers), -1) if cluster is None else cluster.cpu().numpy()}
    if layout is not None:
        found |= {"row": subjects.rows[numbers], "layout": layout.reshape(-1, *layout.shape[-2:]).cpu().numpy()}
    return found
