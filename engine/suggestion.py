"""`sgdm annotate [recipe] --suggest`: how many clusters the images have room for."""

from __future__ import annotations

from rich.table import Table

from engine import distributed, telemetry
from engine.annotate import make_encoder, open_training_images
from engine.config import Config
from engine.extraction import find_features
from sgdm.annotate.number_of_clusters import STEPS, suggest_num_clusters
from sgdm.annotate.temi import BATCH
from sgdm.data.beton import check_beton

CANDIDATES = (10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000)
FEWEST_IMAGES = 10
"""A cluster should hold on average; fewer teach a network copies."""


def run(config: Config) -> None:
    """Extracts the features, if they are not there, and prints what TEMI uses of every candidate, and the bound."""
    count = check_beton(config.data.folder / "train.beton").count
    candidates = [K for K in CANDIDATES if count >= K * FEWEST_IMAGES]
    if not candidates:
        raise ValueError(f"{count} images are too few to suggest a number of clusters: prepare at least 100")
    ranks = distributed.join()
    loader = open_training_images(config, ranks.device)
    encoder, _ = make_encoder(config, loader, ranks)
    features = find_features(config, loader, encoder, ranks)
    if not ranks.first:
        return
    with telemetry.progress("annotate, suggestion", len(candidates) * STEPS * BATCH) as advance:
        found = suggest_num_clusters(features, candidates, seed=config.seed, device=ranks.device, advance=advance)
    table = Table(box=None, pad_edge=False)
    for title in ("K", "used", "share"):
        table.add_column(title, justify="right")
    for use in found.table:
        table.add_row(f"{use.num_clusters:,}", f"{use.used:,}", f"{use.ratio:.1%}")
    telemetry.console.print(table)
    telemetry.say(
        f"annotate: {found.reason}.\nMore clusters than that make samples worse rather than better (Adaloglou et al., "
        f"WACV 2025), fewer say less of an image.\nSuggested: --annotation.num-clusters {found.num_clusters}"
    )
