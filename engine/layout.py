"""The layout set that annotation.layout asks for: boxes or segments of all images, found without labels.

Dense features are made batch by batch and never kept. What is written is compared with truth where the source of the
images has it; nothing else reads that.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine import telemetry
from engine.annotation_config import BoxesConfig
from engine.config import Config
from engine.distributed import Ranks
from engine.extraction import fill_shards, open_shards
from engine.info import versions
from engine.prepare import truth_folder
from engine.segmentation import make_segmenter
from sgdm.annotate import boxes, segments
from sgdm.annotate.crf import refine
from sgdm.annotate.features import Encoder
from sgdm.annotate.layout import Layout, LayoutManifest, as_arrays, as_objects, load_layout, save_layout
from sgdm.annotate.patches import PatchEncoder, patch_encoder
from sgdm.annotate.segments import Segmenter
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
        wanted = config.annotation.boxes
        class_names = ["object"]
        parameters: dict[str, Any] = {"objects": wanted.objects}
        method: str = wanted.finder

        def work(images: Iterator[Tensor], rows: range, advance: Advance) -> Mapping[str, np.ndarray]:
            return as_arrays(find_boxes(patches, wanted, images, advance))
    else:
        asked = config.annotation.segments
        class_names = [f"segment {number}" for number in range(asked.num_segments)]
        segmenter, made, about = make_segmenter(config, loader, encoder, patches, ranks)
        parameters = {**about, "segmenter": made, "crf": asked.crf}
        method = asked.finder

        def work(images: Iterator[Tensor], rows: range, advance: Advance) -> Mapping[str, np.ndarray]:
            return as_arrays(find_segments(segmenter, asked.crf, config.data.image_size, images, advance))

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


def find_boxes(patches: PatchEncoder, wanted: BoxesConfig, images: Iterator[Tensor], advance: Advance) -> Boxes:
    """The boxes of batches of images."""
    found = []
    for batch in images:
        found.append(boxes.find_boxes(patches(batch), wanted.finder, wanted.objects))
        advance(len(batch))
    return boxes.concatenate(found)


def find_segments(segmenter: Segmenter, crf: bool, side: int, images: Iterator[Tensor], advance: Advance) -> RunLengths:
    """The segments of batches of images of `side` pixels."""
    found = []
    for batch in images:
        scores = segmenter.scores(batch, (side, side))
        labels = refine(batch, scores) if crf else scores.argmax(dim=1)
        found.append(segments.segments_of(labels.cpu().numpy()))
        advance(len(batch))
    return segments.concatenate(found)


def _truth(config: Config, data_digest: str) -> Layout | None:
    """What prepare left of the source's own knowledge, if anything."""
    kind = config.annotation.layout
    assert kind != "none"
    folder = truth_folder(config.data.folder / "train.beton", kind)
    return load_layout(folder, data_digest) if (folder / MANIFEST).is_file() else None


def _compare(parts: Sequence[Boxes | RunLengths], truth: Layout, config: Config) -> dict[str, Any]:
    """Agreement with truth, by the measures of LOST and of STEGO."""
    if isinstance(truth.objects, Boxes):
        found = boxes.concatenate([part for part in parts if isinstance(part, Boxes)])
        offsets = truth.objects.image_offsets
        of_images = found.corners[found.image_offsets[:-1]]  # the first of each, which every image has
        report = {"CorLoc": boxes.corloc(of_images, np.split(truth.objects.corners, offsets[1:-1]))}
        if config.annotation.boxes.objects > 1:
            report["precision"], report["recall"] = boxes.precision_and_recall(found, truth.objects)
        return report
    num_segments, num_classes = config.annotation.segments.num_segments, truth.manifest.num_classes
    confusion = np.zeros((num_segments, num_classes + 1), np.int64)
    first = 0
    for part in parts:
        assert isinstance(part, RunLengths)
        confusion += _confusion(part, truth.objects, first, confusion.shape, config.data.image_size)
        first += part.num_images
    mean_iou, accuracy = segments.segment_agreement(confusion)
    return {"mIoU": mean_iou, "pixel accuracy": accuracy}


def _confusion(found: RunLengths, truth: RunLengths, first: int, shape: tuple[int, int], image_size: int) -> np.ndarray:
    """int64 [K, C + 1]: pixels of each found class and each true one, the last of which is the background, of the
    images found from the image `first` of the truth on."""
    confusion = np.zeros(shape, np.int64)
    num_found, background = shape[0], shape[1] - 1
    for start in range(0, found.num_images, COMPARED_AT_ONCE):
        images = np.arange(start, min(start + COMPARED_AT_ONCE, found.num_images))
        views = Views.of(np.full((len(images), 2), image_size))
        maps = [torch.empty(len(images), image_size, image_size, dtype=torch.uint8) for _ in range(2)]
        rasterize_labels(found, views, maps[0], num_classes=num_found, images=images)
        rasterize_labels(truth, views, maps[1], num_classes=background, background=background, images=first + images)
        pairs = maps[0].numpy().astype(np.int64) * (background + 1) + maps[1].numpy()
        confusion += np.bincount(pairs.ravel(), minlength=confusion.size).reshape(shape)
    return confusion
