"""Self-annotation: features of the prepared images, without any label, and their clusters."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine import distributed, telemetry
from engine.config import Config, to_plain
from engine.console import run_program
from engine.info import versions
from sgdm.annotate.clusters import cluster_report, fit_clusters
from sgdm.annotate.features import Encoder, WeightsUnavailable, extract, load_backbone
from sgdm.annotate.selfsup import WhitenedPixels, load_encoder, save_encoder, train_encoder
from sgdm.annotate.store import AnnotationError, AnnotationManifest, begin_annotation, load_annotation, save_annotation
from sgdm.data.beton import check_beton
from sgdm.data.loader import Loader
from sgdm.files import fingerprint

AUTO_BACKBONE = "vit_small_patch16_224.dino"
ENCODER_FILE = "encoder.safetensors"
TRAINING_IMAGES = 200_000
"""At most so many images are held in memory to train an encoder on; more hardly change it."""


def run(config: Config) -> None:
    annotation, folder = config.annotation, config.annotation_folder
    if annotation.num_clusters == 0:
        telemetry.say("annotate: annotation.num_clusters is 0, training is unconditional; nothing to do")
        return
    beton = config.data.folder / "train.beton"
    data = check_beton(beton)
    key = fingerprint(to_plain(annotation), config.seed)
    if _is_whole(folder, data.digest, key):
        telemetry.skip("annotate", folder)
        return
    with telemetry.stage(config.run, "annotate") as record:
        device = distributed.default_device()
        loader = Loader(beton, batch_size=annotation.batch_size, device=device, seed=config.seed)
        features_path = begin_annotation(folder)
        encoder, note = make_encoder(config, loader, folder / ENCODER_FILE)
        labels = np.full(data.count, -1, dtype=np.int64)
        with telemetry.progress("annotate, features", data.count) as advance:
            extract(encoder, _images_and_indices(loader, labels), data.count, features_path, advance)
        features = np.load(features_path, mmap_mode="r", allow_pickle=False)
        with telemetry.progress("annotate, clusters", data.count) as advance:
            clusters = fit_clusters(
                features, annotation.num_clusters, seed=config.seed, iterations=annotation.iterations, advance=advance
            )
        report = cluster_report(clusters.ids, annotation.num_clusters, labels)
        manifest = AnnotationManifest(
            data_digest=data.digest,
            encoder=encoder.name,
            weights_digest=encoder.digest,
            num_clusters=annotation.num_clusters,
            seed=config.seed,
            iterations=annotation.iterations,
            parameters={
                "key": key,
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
        record.images, record.result = data.count, str(folder)


def make_encoder(config: Config, loader: Loader, saved: Path) -> tuple[Encoder, str]:
    """The encoder that annotation.encoder names, and a sentence on how it came to be.

    One that is trained here is saved, so that a run that was interrupted later finds it again."""
    annotation, device = config.annotation, loader.device
    note = ""
    if annotation.encoder == "auto":
        try:
            backbone = load_backbone(AUTO_BACKBONE, annotation.weights, device)
            return backbone, f"{AUTO_BACKBONE}, pretrained without labels on ImageNet"
        except WeightsUnavailable as error:
            note = f"{AUTO_BACKBONE} is not to be had, so an encoder is trained on these images"
            telemetry.say(f"annotate: {error}\nannotate: {note}")
    elif annotation.encoder not in ("self-supervised", "pixels"):
        return load_backbone(annotation.encoder, annotation.weights, device), "pretrained"
    elif annotation.encoder == "pixels":
        return WhitenedPixels.fit(_training_images(loader, config.seed), device=device), "PCA-whitened pixels"
    raise AssertionError(note)


def _training_images(loader: Loader, seed: int) -> Tensor:
    """uint8 [N, 3, H, W] on the CPU: all images, or a random choice of TRAINING_IMAGES."""
    rows = np.arange(len(loader))
    if len(rows) > TRAINING_IMAGES:
        rows = np.sort(np.random.default_rng(seed).choice(rows, TRAINING_IMAGES, replace=False))
    return torch.cat([batch.image.cpu() for batch in loader.select(rows)])


def _images_and_indices(loader: Loader, labels: NDArray[np.int64]) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches for feature extraction; keeps the labels, which only the report compares with, on the way."""
    for batch in loader.once():
        labels[batch.index.cpu().numpy()] = batch.label.cpu().numpy()
        yield batch.image, batch.index


def _is_whole(folder: Path, data_digest: str, key: str) -> bool:
    try:
        return load_annotation(folder, data_digest).manifest.parameters.get("key") == key
    except AnnotationError:
        return False


def main() -> None:
    run_program("annotate", run)


if __name__ == "__main__":
    main()
