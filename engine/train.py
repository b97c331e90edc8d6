"""Train the guided network: `deepspeed engine/train.py [recipe] [--field value ...]`; `sgdm train`: one process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch.distributed

from engine import checkpoint, distributed, telemetry
from engine.agreement import Agreement
from engine.config import Config
from engine.console import run_program
from engine.distributed import Ranks
from engine.guidance import Guidance, load_guidance, make_guides
from engine.run_lock import RunLockedError, run_lock
from engine.run_log import check_wandb
from engine.stopping import Stopping
from engine.trainer import Trainer
from sgdm.data.beton import check_beton
from sgdm.data.loader import Loader


def run(config: Config) -> None:
    beton = config.data.folder / "train.beton"
    manifest = check_beton(beton)
    guidance = load_guidance(config, manifest.digest)
    if config.training.wandb:
        check_wandb()
    ranks = distributed.initialize()
    with _locked(config.run, ranks), Stopping() as stopping, Agreement(ranks) as agreement:
        attempt = distributed.restarts(ranks)
        if ranks.first and attempt:
            telemetry.say(f"train: started again, restart {attempt}")
        last = checkpoint.newest(config.run)
        if last is None or checkpoint.images_of(last) < config.training.images or checkpoint.damage(last, ranks):
            _train(config, beton, guidance, ranks, stopping, agreement)
        else:
            checkpoint.check(last, config, guidance.trained_on)
            if ranks.first:
                telemetry.skip("train", last)


@contextmanager
def _locked(folder: Path, ranks: Ranks) -> Iterator[None]:
    """The first process holds the folder for all; RunLockedError in all of them where another run holds it."""
    with ExitStack() as stack:
        refusal: list[str | None] = [None]
        if ranks.first:
            try:
                stack.enter_context(run_lock(folder))
            except RunLockedError as error:
                refusal = [str(error)]
        torch.distributed.broadcast_object_list(refusal, src=0)
        if refusal[0] is not None:
            raise RunLockedError(refusal[0])
        yield


def _train(
    config: Config, beton: Path, guidance: Guidance, ranks: Ranks, stopping: Stopping, agreement: Agreement
) -> None:
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
        record.result = str(trainer.train(stopping, agreement))
        record.images = trainer.images - start


def main() -> None:
    run_program("train", run)


if __name__ == "__main__":
    main()
