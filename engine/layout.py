"""The layout set that annotation.layout asks for: boxes or segments of all images, found without labels.

Dense features are made batch by batch and never kept. What is written is compared with truth where the source of the
images has it; nothing else reads that.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine import telemetry
from engine.config import Config
from engine.info import versions
from engine.prepare import truth_folder
from sgdm.annotate import boxes, lost, segments
from sgdm.annotate.features import Encoder
from sgdm.annotate.layout import MANIFEST, Layout, LayoutManifest, load_layout, save_layout
from sgdm.annotate.patches import PatchEncoder, patch_encoder
from sgdm.data.loader import Loader
from sgdm.progress import Advance
from sgdm.ragged import Boxes, RunLengths, Views
from sgdm.raster import rasterize_labels

COMPARED_AT_ONCE = 1024  # label maps


def find_layout(config: Config, loader: Loader, encoder: Encoder, note: str) -> None:
    """Writes the layout set with a report of its agreement with truth, where there is truth."""
    kind = config.annotation.layout
    assert kind != "none"
    patches = patch_encoder(encoder, kind)
    truth = _truth(config, loader.manifest.digest)
    objects: Boxes | RunLengths
    if kind == "boxes":
        objects, parameters, class_names = _find_boxes(loader, patches), {"expansion": lost.EXPANSION}, ["object"]
        method = "LOST"
    else:
        objects = _find_segments(config, loader, patches)
        parameters = {"iterations": config.annotation.iterations, "sampled_patches": segments.SAMPLE}
        class_names = [f"segment {number}" for number in range(config.annotation.num_segments)]
        method = "k-means of patches"
    report = {} if truth is None else _compare(objects, truth, config)
    manifest = LayoutManifest(
        data_digest=loader.manifest.digest,
        kind=kind,
        method=method,
        weights_digest=patches.digest,
        class_names=class_names,
        seed=config.seed,
        parameters={"features": patches.name, "grid": list(patches.grid), "note": note, **parameters},
        versions=versions(),
        report=report,
    )
    save_layout(config.layout_folder, manifest, objects)
    quality = ", ".join(f"{name} {value:.3f}" for name, value in report.items())
    telemetry.say(
        f"annotate: {kind} by {method}, {patches.name}"
        + (f", {quality} against truth that was not used" * bool(report))
    )


def _find_boxes(loader: Loader, patches: PatchEncoder) -> Boxes:
    with telemetry.progress("annotate, boxes", len(loader)) as advance:
        return boxes.concatenate([boxes.find_boxes(patches(images)) for images in _images(loader, advance)])


def _find_segments(config: Config, loader: Loader, patches: PatchEncoder) -> RunLengths:
    annotation, count = config.annotation, len(loader)
    # A patch of each of very many images says more than many patches of a few.
    rows = np.arange(count)
    if count > segments.SAMPLE:
        rows = np.sort(np.random.default_rng(config.seed).choice(count, segments.SAMPLE, replace=False))
    with telemetry.progress("annotate, patches", len(rows)) as advance:
        sample = segments.sample_patches(patches, _images(loader, advance, rows), len(rows), config.seed)
    centroids = segments.fit_segments(
        sample, annotation.num_segments, seed=config.seed, iterations=annotation.iterations
    )
    weights = torch.from_numpy(centroids).to(loader.device)
    size = (config.data.image_size, config.data.image_size)
    with telemetry.progress("annotate, segments", count) as advance:
        return segments.concatenate(
            [
                segments.segments_of(segments.label_pixels(patches(images), weights, size).cpu().numpy())
                for images in _images(loader, advance)
            ]
        )


def _images(loader: Loader, advance: Advance, rows: np.ndarray | None = None) -> Iterator[Tensor]:
    """The images of `rows`, else of all, in order."""
    for batch in loader.once() if rows is None else loader.select(rows):
        yield batch.image
        advance(len(batch.image))


def _truth(config: Config, data_digest: str) -> Layout | None:
    """What prepare left of the source's own knowledge, if anything."""
    kind = config.annotation.layout
    assert kind != "none"
    folder = truth_folder(config.data.folder / "train.beton", kind)
    return load_layout(folder, data_digest) if (folder / MANIFEST).is_file() else None


def _compare(objects: Boxes | RunLengths, truth: Layout, config: Config) -> dict[str, Any]:
    """Agreement with truth, by the measures of LOST and of STEGO."""
    if isinstance(objects, Boxes):
        assert isinstance(truth.objects, Boxes)
        offsets = truth.objects.image_offsets
        return {"CorLoc": boxes.corloc(objects.corners, np.split(truth.objects.corners, offsets[1:-1]))}
    assert isinstance(truth.objects, RunLengths)
    num_segments, num_classes = config.annotation.num_segments, truth.manifest.num_classes
    confusion = _confusion(objects, truth.objects, num_segments, num_classes, config.data.image_size)
    mean_iou, accuracy = segments.segment_agreement(confusion)
    return {"mIoU": mean_iou, "pixel accuracy": accuracy}


def _confusion(found: RunLengths, truth: RunLengths, num_found: int, num_true: int, size: int) -> np.ndarray:
    """int64 [K, C + 1]: pixels of each found class and each true one, the last of which is the background."""
    confusion = np.zeros((num_found, num_true + 1), np.int64)
    for start in range(0, found.num_images, COMPARED_AT_ONCE):
        images = np.arange(start, min(start + COMPARED_AT_ONCE, found.num_images))
        views = Views.of(np.full((len(images), 2), size))
        maps = [torch.empty(len(images), size, size, dtype=torch.uint8) for _ in range(2)]
        rasterize_labels(found, views, maps[0], num_classes=num_found, images=images)
        rasterize_labels(truth, views, maps[1], num_classes=num_true, background=num_true, images=images)
        pairs = maps[0].numpy().astype(np.int64) * (num_true + 1) + maps[1].numpy()
        confusion += np.bincount(pairs.ravel(), minlength=confusion.size).reshape(confusion.shape)
    return confusion
