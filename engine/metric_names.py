"""Metrics in words: what they are called, which way is better, and what has to stand beside every number of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from engine.evidence import is_number

METRICS = {  # key of metrics.json and column of sweep.csv: heading, which way is better
    "frechet_distance": ("Fréchet distance", "↓"),
    "spatial_frechet_distance": ("Spatial Fréchet distance", "↓"),
    "kernel_distance": ("Kernel distance", "↓"),
    "backbone_frechet_distance": ("Fréchet distance", "↓"),
    "inception_score": ("Inception-style score", "↑"),
    "precision": ("Precision", "↑"),
    "recall": ("Recall", "↑"),
    "density": ("Density", "↑"),
    "coverage": ("Coverage", "↑"),
    "replica_share": ("Replica share", "↓"),
    "layout_agreement": ("Layout agreement", "↑"),
    "layout_agreement_by_chance": ("by chance", "↓"),
}
QUALITY = ("precision", "recall", "density", "coverage")
LAYOUTS = ("layout_agreement", "layout_agreement_by_chance")
OF_BACKBONE = ("backbone_frechet_distance", "replica_share")  # where there is a backbone


def leading(rows: Iterable[Mapping[str, Any]]) -> str:
    """The metric that tells which row is best: the Fréchet distance; the kernel distance where that is not defined."""
    return "frechet_distance" if all(is_number(row["frechet_distance"]) for row in rows) else "kernel_distance"


def name_of(key: str, network: str) -> str:
    """A metric's name. FID and Inception score are of Inception's features only."""
    of_inception = {"frechet_distance": "FID", "inception_score": "Inception score"}
    return of_inception.get(key, METRICS[key][0]) if network.startswith("Inception") else METRICS[key][0]


def title_of(key: str, network: str, backbone: str | None) -> str:
    """A metric's name and the network whose features it is of."""
    return f"{name_of(key, network)} ({network_of(key, network, backbone)})"


def network_of(key: str, network: str, backbone: str | None) -> str:
    return backbone if key in OF_BACKBONE and backbone is not None else network


def heading_of(key: str, network: str, backbone: str | None) -> tuple[str, str]:
    """Of a column of a table whose caption names the network: another network's name, and which way is better."""
    name = name_of(key, network)
    if key == "backbone_frechet_distance" and backbone is not None:
        name += f", {backbone}"
    return name, METRICS[key][1]


def provenance(network: str, images: int, reference_images: int, split: str) -> str:
    """What every number depends on, to stand beside each of them."""
    return f"{network} features, {images:,} samples against {reference_images:,} {split} images"


def why_no_frechet_distance(reference_images: int) -> str:
    """The reason that stands where the kernel distance stands in."""
    return (
        f"No Fréchet distance: {reference_images:,} real images do not span the dimensions of the features, and their "
        "covariance is singular. The kernel distance, which any number allows, stands in"
    )


def decimals(key: str, column: list[float]) -> int:
    """As many as a column's largest number needs for four digits, so that they align."""
    largest = 1 if key in QUALITY + LAYOUTS else max(map(abs, column)) or 1
    return min(6, max(0, 3 - math.floor(math.log10(largest))))
