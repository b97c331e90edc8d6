"""Self-annotation without any label: features of the prepared images and their clusters, boxes or segments."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine import distributed, telemetry
from engine.config import Config
from engine.console import run_program
from engine.info import versions
from engine.layout import find_layout
from sgdm.annotate.clusters import cluster_report, fit_clusters
from sgdm.annotate.features import Encoder, WeightsUnavailable, extract, load_backbone
from sgdm.annotate.layout import LayoutError, load_layout
from sgdm.annotate.selfsup import at_size, fit_whitened_pixels, load_encoder, save_encoder, train_encoder
from sgdm.annotate.store import AnnotationError, AnnotationManifest, begin_annotation, load_annotation, save_annotation
from sgdm.data.beton import check_beton
from sgdm.data.loader import Loader
from sgdm.files import fingerprint

AUTO_BACKBONE = "vit_small_patch16_224.dino"
Work = Callable[[Config, Loader, Encoder, str], None]
TRAINING_IMAGES = 65_536
"""At most so many images are read to train an encoder on; it uses no more."""


def run(config: Config) -> None:
    annotation = config.annotation
    if annotation.num_clusters == 0 and annotation.layout == "none":
        telemetry.say("annotate: annotation.num_clusters is 0, training is unconditional; nothing to do")
        return
    beton = config.data.folder / "train.beton"
    data = check_beton(beton)
    if annotation.num_clusters > data.count:
        raise ValueError(
            f"annotation.num_clusters is {annotation.num_clusters}, but {beton} has only {data.count} images: "
            f"give at most {data.count}"
        )
    work: dict[Path, Work] = {}
    if annotation.num_clusters and not _is_whole(load_annotation, config.annotation_folder, data.digest):
        work[config.annotation_folder] = find_clusters
    if annotation.layout != "none" and not _is_whole(load_layout, config.layout_folder, data.digest):
        work[config.layout_folder] = find_layout
    if not work:
        telemetry.skip("annotate", config.annotation_folder if annotation.num_clusters else config.layout_folder)
        return
    with telemetry.stage(config, "annotate") as record:
        device = distributed.default_device()
        loader = Loader(beton, batch_size=annotation.batch_size, device=device, seed=config.seed)
        encoder, note = make_encoder(config, loader)
        for find in work.values():
            find(config, loader, encoder, note)
        record.images, record.result = data.count, ", ".join(str(folder) for folder in work)


def find_clusters(config: Config, loader: Loader, encoder: Encoder, note: str) -> None:
    """Writes the annotation set: features of all images, and their clusters."""
    annotation, folder, count = config.annotation, config.annotation_folder, len(loader)
    features_path = begin_annotation(folder)
    labels = np.full(count, -1, dtype=np.int64)
    with telemetry.progress("annotate, features", count) as advance:
        extract(encoder, _images_and_indices(loader, labels), count, features_path, advance)
    features = np.load(features_path, mmap_mode="r", allow_pickle=False)
    with telemetry.progress("annotate, clusters", count) as advance:
        clusters = fit_clusters(
            features, annotation.num_clusters, seed=config.seed, iterations=annotation.iterations, advance=advance
        )
    report = cluster_report(clusters.ids, annotation.num_clusters, labels)
    manifest = AnnotationManifest(
        data_digest=loader.manifest.digest,
        encoder=encoder.name,
        weights_digest=encoder.digest,
        num_clusters=annotation.num_clusters,
        seed=config.seed,
        iterations=annotation.iterations,
        parameters={
            "note": note,
            "sample_size": clusters.sample_size,
            "objective": clusters.objective,
            "threads": torch.get_num_threads(),
        },
        versions=versions(),
        report=report,
    )
    save_annotation(folder, manifest, clusters)
    quality = f", purity {report['purity']:.3f} against labels that were not used" if "purity" in report else ""
    telemetry.say(f"annotate: {annotation.num_clusters} clusters of {encoder.name} features{quality}")


def make_encoder(config: Config, loader: Loader) -> tuple[Encoder, str]:
    """The encoder that annotation.encoder names, and a sentence on how it came to be."""
    annotation, device = config.annotation, loader.device
    name, note = annotation.encoder, ""
    if name == "auto":
        try:
            return load_backbone(AUTO_BACKBONE, annotation.weights, device), "pretrained without labels, on ImageNet"
        except WeightsUnavailable as error:
            telemetry.say(f"annotate: {error}\nannotate: training an encoder on these images instead")
            name, note = "self-supervised", f"; {AUTO_BACKBONE} was not to be had"
    if name == "self-supervised":
        return _own_encoder(config, loader), f"a ConvNet trained on these images without any label{note}"
    if name == "pixels":
        encoder = fit_whitened_pixels(_training_images(loader, config.seed), seed=config.seed, device=device)
        return encoder, "principal components of the pixels, half whitened"
    return load_backbone(name, annotation.weights, device), "pretrained, by timm"


def _own_encoder(config: Config, loader: Loader) -> Encoder:
    """Trained on these images, once: a later run, with another K or after an interruption, finds the file."""
    budget, digest = config.annotation.encoder_images, loader.manifest.digest
    path = config.annotation_folder.parent / f"encoder-{fingerprint(digest, budget, config.seed)[:16]}.safetensors"
    if path.exists():
        telemetry.say(f"annotate: the encoder is whole already -> {path}")
        return load_encoder(path, loader.device)
    with telemetry.progress("annotate, encoder", budget) as advance:
        encoder = train_encoder(
            _training_images(loader, config.seed),
            seed=config.seed,
            images_budget=budget,
            device=loader.device,
            advance=advance,
        )
    save_encoder(encoder, path)
    return encoder


def _training_images(loader: Loader, seed: int) -> Tensor:
    """uint8 [N, 3, 32, 32] on the CPU: all images, or a random choice of TRAINING_IMAGES."""
    rows = np.arange(len(loader))
    if len(rows) > TRAINING_IMAGES:
        rows = np.sort(np.random.default_rng(seed).choice(rows, TRAINING_IMAGES, replace=False))
    return torch.cat([at_size(batch.image).cpu() for batch in loader.select(rows)])


def _images_and_indices(loader: Loader, labels: NDArray[np.int64]) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches for feature extraction; keeps the labels, which only the report compares with, on the way."""
    for batch in loader.once():
        labels[batch.index.cpu().numpy()] = batch.label.cpu().numpy()
        yield batch.image, batch.index


def _is_whole(load: Callable[[Path, str], object], folder: Path, data_digest: str) -> bool:
    try:
        load(folder, data_digest)
    except (AnnotationError, LayoutError):
        return False
    return True


def main() -> None:
    run_program("annotate", run)


if __name__ == "__main__":
    main()
