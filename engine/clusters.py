"""Cluster sets of a run: found in features, or made as controls."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine import telemetry
from engine.config import Config
from engine.info import versions
from sgdm.annotate.agreement import cluster_report
from sgdm.annotate.cluster_set import ClusterManifest, save_clusters
from sgdm.annotate.clusters import Refine, fit_clusters
from sgdm.annotate.controls import control_ids
from sgdm.annotate.features import FeatureSet
from sgdm.annotate.names import CONTROLS
from sgdm.annotate.temi import BATCH, refine_centroids
from sgdm.data.loader import Loader

TEMI_STEPS = 1000


def find_clusters(config: Config, loader: Loader, features: FeatureSet, num_clusters: Sequence[int], note: str) -> None:
    """Writes a cluster set for every K, all found in one pass over the features."""
    annotation = config.annotation
    with telemetry.progress("annotate, clusters", len(features)) as advance:
        found = fit_clusters(
            features, num_clusters, seed=config.seed, iterations=annotation.iterations, advance=advance
        )
    for K, clusters in zip(num_clusters, found, strict=True):
        made = {
            "note": note,
            "iterations": annotation.iterations,
            "features": features.manifest.parameters,
            "sample_size": clusters.sample_size,
            "objective": clusters.objective,
            "repaired": clusters.repaired,
            "images_moved_by_repair": clusters.moved,
            "threads": torch.get_num_threads(),
        }
        _save(config, loader, clusters.ids, K, features, made, clusters.centroids, clusters.nearest)
        _checkpoint(config, features, K).unlink(missing_ok=True)


def _temi(config: Config, loader: Loader, features: FeatureSet) -> Refine:
    def refine(sample: np.ndarray, centroids: np.ndarray) -> np.ndarray:
        path = _checkpoint(config, features, len(centroids))
        with telemetry.progress(f"annotate, TEMI of {len(centroids)} clusters", TEMI_STEPS * BATCH) as advance:
            return refine_centroids(
                sample,
                centroids,
                steps=TEMI_STEPS,
                seed=config.seed,
                device=loader.device,
                checkpoint=path,
                advance=advance,
            )

    return refine


def _checkpoint(config: Config, features: FeatureSet, num_clusters: int) -> Path:
    """Of TEMI on these very features."""
    return config.clusters_folder_of(num_clusters) / f"temi-{features.manifest.digest[:8]}.training.pt"


def make_controls(config: Config, loader: Loader, num_clusters: Sequence[int]) -> None:
    """Writes cluster sets whose ids are not found."""
    method = config.annotation.clusters
    assert method in CONTROLS
    for K in num_clusters:
        ids = control_ids(method, loader.labels, K, config.seed)
        _save(config, loader, ids, K, None, {"note": "a control"})


def _save(
    config: Config,
    loader: Loader,
    ids: np.ndarray,
    num_clusters: int,
    features: FeatureSet | None,
    parameters: dict[str, Any],
    centroids: np.ndarray | None = None,
    nearest: np.ndarray | None = None,
) -> None:
    report = cluster_report(ids, num_clusters, loader.labels, repaired=parameters.get("repaired", 0))
    found = features.manifest if features else None
    manifest = ClusterManifest(
        data_digest=loader.manifest.digest,
        method=config.annotation.clusters,
        encoder=found.encoder if found else "",
        weights_digest=found.weights_digest if found else "",
        features_digest=found.digest if found else "",
        num_clusters=num_clusters,
        seed=config.seed,
        parameters=parameters,
        versions=versions(),
        report=report,
    )
    folder = config.clusters_folder_of(num_clusters)
    save_clusters(
        folder,
        manifest,
        ids,
        np.zeros((0, 0), np.float32) if centroids is None else centroids,
        np.zeros((0, 0), np.int64) if nearest is None else nearest,
    )
    of = f"{found.encoder} features" if found else "no features"
    used = manifest.method in ("labels", "split-labels")
    quality = ""
    if "purity" in report and not used:
        quality = f", purity {report['purity']:.3f} against labels that were not used"
    telemetry.say(f"annotate: {num_clusters} clusters by {manifest.method} of {of}{quality} -> {folder}")
