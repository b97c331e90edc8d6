"""Self-annotation without any label: features of the prepared images and their clusters, boxes or segments.

On several GPUs, or several nodes: `deepspeed engine/annotate.py [recipe] [--field value ...]`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from engine import compilation, distributed, telemetry
from engine.clusters import find_clusters, make_controls
from engine.config import Config, to_plain
from engine.console import run_program
from engine.distributed import Ranks
from engine.extraction import find_features
from engine.layout import find_layout
from sgdm.annotate.backbones import WeightsUnavailable, load_backbone
from sgdm.annotate.cluster_set import load_clusters
from sgdm.annotate.features import Encoder
from sgdm.annotate.layout import load_layout
from sgdm.annotate.names import CONTROLS
from sgdm.annotate.selfsup import at_size, fit_whitened_pixels, load_encoder, save_encoder, train_encoder
from sgdm.annotate.sets import AnnotationError
from sgdm.data.beton import DataManifest, check_beton
from sgdm.data.loader import Loader
from sgdm.files import fingerprint

AUTO_BACKBONE = "vit_small_patch16_224.dino"
TRAINING_IMAGES = 65_536
"""At most so many images are read to train an encoder on; it uses no more."""


def run(config: Config) -> None:
    annotation = config.annotation
    if annotation.num_clusters == 0 and annotation.layout == "none":
        telemetry.say("annotate: annotation.num_clusters is 0, training is unconditional; nothing to do")
        return
    data = check_beton(config.data.folder / "train.beton")
    for number in wanted_clusters(config):
        if number > data.count:
            raise ValueError(
                f"annotation.num_clusters is {number}, but {config.data.folder / 'train.beton'} has only {data.count} "
                f"images: give at most {data.count}"
            )
    clusters = [K for K in wanted_clusters(config) if not is_whole(load_clusters, config.clusters_folder_of(K), data)]
    layout = annotation.layout != "none" and not is_whole(load_layout, config.layout_folder, data)
    if not clusters and not layout:
        telemetry.skip("annotate", config.clusters_folder if annotation.num_clusters else config.layout_folder)
        return
    ranks = distributed.join()
    with telemetry.stage(config, "annotate", visible=ranks.first) as record:
        loader = open_training_images(config, ranks.device)
        if clusters and annotation.clusters in CONTROLS:
            if ranks.first:
                make_controls(config, loader, clusters)
            clusters = []
        if clusters or layout:
            encoder, note = make_encoder(config, loader, ranks)
        if clusters:
            features = find_features(config, loader, encoder, ranks)
            if ranks.first:
                find_clusters(config, loader, features, clusters, note)
        if layout:
            find_layout(config, loader, encoder, note, ranks)
        ranks.wait()
        folders = [config.clusters_folder_of(K) for K in wanted_clusters(config)]
        folders += [config.layout_folder] if annotation.layout != "none" else []
        record.images, record.result = data.count, ", ".join(map(str, folders))


def wanted_clusters(config: Config) -> list[int]:
    """Every K that is asked for; none where clusters do not guide."""
    annotation = config.annotation
    return [K for K in dict.fromkeys((annotation.num_clusters, *annotation.also_clusters)) if K]


def open_training_images(config: Config, device: torch.device) -> Loader:
    """The prepared training images, for encoders."""
    path = config.data.folder / "train.beton"
    return Loader(path, batch_size=config.annotation.batch_size, device=device, seed=config.seed)


def make_encoder(config: Config, loader: Loader, ranks: Ranks) -> tuple[Encoder, str]:
    """The encoder that annotation.encoder names, and a sentence on how it came to be."""
    annotation, device = config.annotation, loader.device
    name, note = annotation.encoder, ""

    def backbone(name: str) -> Encoder:
        compiled = compilation.choose(annotation.compile, device)
        return load_backbone(
            name,
            annotation.weights,
            device,
            annotation.features,
            bf16=distributed.computes_in_bf16(annotation.precision, device),
            compiled=compiled if compiled.compiles else None,
            batch_size=annotation.batch_size,
        )

    if name == "auto":
        try:
            return backbone(AUTO_BACKBONE), "pretrained without labels, on ImageNet"
        except WeightsUnavailable as error:
            if ranks.first:
                telemetry.say(f"annotate: {error}\nannotate: training an encoder on these images instead")
            name, note = "self-supervised", f"; {AUTO_BACKBONE} was not to be had"
    if name == "self-supervised":
        path = encoder_path(config, loader.manifest)
        if ranks.first:
            train_own_encoder(config, loader, path)
        ranks.wait()
        return load_encoder(path, device), f"trained on these images without any label{note}"
    if name == "pixels":
        encoder = fit_whitened_pixels(_training_images(loader, config.seed), seed=config.seed, device=device)
        return encoder, "principal components of the pixels, half whitened"
    return backbone(name), "pretrained, by timm"


def encoder_path(config: Config, data: DataManifest) -> Path:
    """The file of the encoder that is trained on these very images."""
    wanted = config.annotation.self_supervision
    digest = fingerprint(data.digest, to_plain(wanted), config.seed)[:8]
    return config.data.folder / "annotations" / f"encoder-{wanted.objective}-{wanted.network}-{digest}.safetensors"


def train_own_encoder(config: Config, loader: Loader, path: Path) -> None:
    """Once: a later run, with another K or after an interruption, finds the file."""
    wanted = config.annotation.self_supervision
    if path.exists():
        telemetry.say(f"annotate: the encoder is whole already -> {path}")
        return
    checkpoint = path.with_suffix(".training.pt")
    with telemetry.progress("annotate, encoder", wanted.images) as advance:
        encoder = train_encoder(
            _training_images(loader, config.seed),
            objective=wanted.objective,
            network=wanted.network,
            seed=config.seed,
            images_budget=wanted.images,
            device=loader.device,
            checkpoint=checkpoint,
            advance=advance,
        )
    save_encoder(encoder, path)
    checkpoint.unlink(missing_ok=True)


def _training_images(loader: Loader, seed: int) -> Tensor:
    """uint8 [N, 3, 32, 32] on the CPU: all images, or a random choice of TRAINING_IMAGES."""
    rows = np.arange(len(loader))
    if len(rows) > TRAINING_IMAGES:
        rows = np.sort(np.random.default_rng(seed).choice(rows, TRAINING_IMAGES, replace=False))
    return torch.cat([at_size(batch.image).cpu() for batch in loader.select(rows)])


def is_whole(load: Callable[[Path, str], object], folder: Path, data: DataManifest) -> bool:
    try:
        load(folder, data.digest)
    except AnnotationError:
        return False
    return True


def main() -> None:
    run_program("annotate", run)


if __name__ == "__main__":
    main()
