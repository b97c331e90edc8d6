"""Train the guided network: `deepspeed engine/train.py [recipe] [--field value ...]`; `sgdm train`: one process."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

from engine import checkpoint, distributed, telemetry
from engine.config import Config
from engine.console import run_program
from engine.distributed import Ranks
from engine.guidance import Guidance, load_guidance, make_guides
from engine.run_lock import run_lock
from engine.trainer import Trainer
from sgdm.data.beton import check_beton
from sgdm.data.loader import Loader


def run(config: Config) -> None:
    beton = config.data.folder / "train.beton"
    manifest = check_beton(beton)
    guidance = load_guidance(config, manifest.digest)
    last = checkpoint.newest(config.run)
    if last is not None:
        checkpoint.check(last, config, guidance.trained_on)
    ranks = distributed.initialize()
    with run_lock(config.run) if ranks.first else nullcontext():
        _train(config, beton, guidance, ranks)


def _train(config: Config, beton: Path, guidance: Guidance, ranks: Ranks) -> None:
    last = checkpoint.newest(config.run)
    if last is not None and checkpoint.images_of(last) >= config.training.images:
        if ranks.first:
            telemetry.skip("train", last)
        return
    with telemetry.stage(config, "train", visible=ranks.first) as record:
        loader = Loader(
            beton,
            batch_size=config.training.batch_size // ranks.world_size,
            device=ranks.device,
            seed=config.seed,
            rank=ranks.rank,
            world_size=ranks.world_size,
        )
        guides = make_guides(config, guidance.clusters, guidance.layout, ranks.device)
        trainer = Trainer(config, loader, guides, guidance.trained_on, ranks)
        trainer.resume()
        start = trainer.images
        record.result = str(trainer.train())
        record.images = trainer.images - start


def main() -> None:
    run_program("train", run)


if __name__ == "__main__":
    main()
