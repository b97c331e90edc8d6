"""The layout set that annotation.layout asks for: boxes or segments of all images, found without labels.

Dense features are made batch by batch and never kept. What is written is compared with truth where the source of the
images has it; nothing else reads that.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine import telemetry
from engine.config import Config
from engine.distributed import Ranks
from engine.extraction import fill_shards, open_shards
from engine.info import versions
from engine.prepare import truth_folder
from sgdm.annotate import boxes, segments
from sgdm.annotate.features import Encoder
from sgdm.annotate.layout import Layout, LayoutManifest, as_arrays, as_objects, load_layout, save_layout
from sgdm.annotate.patches import PatchEncoder, patch_encoder
from sgdm.annotate.sets import MANIFEST
from sgdm.data.loader import Loader
from sgdm.progress import Advance
from sgdm.ragged import Boxes, RunLengths, Views
from sgdm.raster import rasterize_labels

COMPARED_AT_ONCE = 1024  # label maps


def find_layout(config: Config, loader: Loader, encoder: Encoder, note: str, ranks: Ranks) -> None:
    """Writes the layout set with a report of its agreement with truth, where there is truth."""
    kind = config.annotation.layout
    assert kind != "none"
    patches = patch_encoder(encoder, kind)
    if kind == "boxes":
        class_names = ["object"]
        parameters: dict[str, Any] = {"expansion": boxes.EXPANSION}
        method = "LOST"

        def work(images: Iterator[Tensor], rows: range, advance: Advance) -> Mapping[str, np.ndarray]:
            return as_arrays(find_boxes(patches, images, advance))
    else:
        class_names = [f"segment {number}" for number in range(config.annotation.segments.num_segments)]
        parameters = {"iterations": config.annotation.iterations, "sampled_patches": segments.SAMPLE}
        method = "k-means of patches"
        centroids = segment_classes(config, loader, patches)
        size = (config.data.image_size, config.data.image_size)

        def work(images: Iterator[Tensor], rows: range, advance: Advance) -> Mapping[str, np.ndarray]:
            return as_arrays(find_segments(patches, centroids, size, images, advance))

    parameters = {"features": patches.name, "grid": list(patches.grid), "encoder": encoder.parameters, **parameters}
    identity = {"data": loader.manifest.digest, "weights": patches.digest, "method": method, "parameters": parameters}
    shards = open_shards(config, config.layout_folder / "shards", len(loader), identity, ranks)
    fill_shards(f"annotate, {kind}", shards, loader, ranks, work)
    if not ranks.first:
        return
    parts = [as_objects(kind, shards.load(number)) for number in range(len(shards))]
    truth = _truth(config, loader.manifest.digest)
    report = {} if truth is None else _compare(parts, truth, config)
    manifest = LayoutManifest(
        data_digest=loader.manifest.digest,
        kind=kind,
        method=method,
        weights_digest=patches.digest,
        class_names=class_names,
        seed=config.seed,
        parameters={"note": note, **parameters},
        versions=versions(),
        report=report,
    )
    save_layout(config.layout_folder, manifest, *parts)
    shutil.rmtree(shards.folder)
    quality = ", ".join(f"{name} {value:.3f}" for name, value in report.items())
    telemetry.say(
        f"annotate: {kind} by {method}, {patches.name}"
        + (f", {quality} against truth that was not used" * bool(report))
    )
