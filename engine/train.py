"""Train the guided network: `deepspeed engine/train.py [recipe] [--field value ...]`; `sgdm train`: one process."""

from __future__ import annotations

import torch

from engine import checkpoint, distributed, telemetry
from engine.config import Config
from engine.console import run_program
from engine.trainer import Trainer
from sgdm.annotate.store import load_annotation
from sgdm.data.beton import check_beton
from sgdm.data.loader import Loader


def run(config: Config) -> None:
    beton = config.data.folder / "train.beton"
    manifest = check_beton(beton)
    ids = None
    if config.annotation.num_clusters:
        ids = load_annotation(config.annotation_folder, manifest.digest).clusters
    trained_on = checkpoint.provenance(manifest.digest, ids)
    last = checkpoint.newest(config.run)
    if last is not None:
        checkpoint.check(last, config, trained_on)
    ranks = distributed.initialize()
    if last is not None and checkpoint.images_of(last) >= config.training.images:
        if ranks.first:
            telemetry.skip("train", last)
        return
    clusters = None if ids is None else torch.from_numpy(ids).to(ranks.device, torch.int64)
    with telemetry.stage(config, "train", visible=ranks.first) as record:
        loader = Loader(
            beton,
            batch_size=config.training.batch_size // ranks.world_size,
            device=ranks.device,
            seed=config.seed,
            rank=ranks.rank,
            world_size=ranks.world_size,
        )
        trainer = Trainer(config, loader, clusters, trained_on, ranks)
        trainer.resume()
        start = trainer.images
        record.result = str(trainer.train())
        record.images = trainer.images - start


def main() -> None:
    run_program("train", run)


if __name__ == "__main__":
    main()
