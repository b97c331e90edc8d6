"""Trains one configuration in several ways, one after the other in the same processes, which saves their start-up.

A launcher runs it: scenarios.py CONFIG.yaml '{"run name": {"training field": value}}'. Each run lies beside that of the
configuration.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import torch

from engine import distributed
from engine.agreement import Agreement
from engine.config import load_config
from engine.guidance import load_guidance, make_guides
from engine.stopping import Stopping
from engine.trainer import Trainer
from sgdm.data.beton import check_beton
from sgdm.data.loader import Loader


def main() -> None:
    config = load_config(Path(sys.argv[1]))
    ranks = distributed.initialize()
    torch.set_num_threads(1)
    beton = config.data.folder / "train.beton"
    guidance = load_guidance(config, check_beton(beton).digest)
    loader = Loader(
        beton,
        batch_size=config.training.batch_size // ranks.world_size,
        device=ranks.device,
        seed=config.seed,
        rank=ranks.rank,
        world_size=ranks.world_size,
    )
    guides = make_guides(config, guidance.clusters, guidance.layout, ranks.device)
    with Stopping() as stopping, Agreement(ranks) as agreement:
        for name, fields in json.loads(sys.argv[2]).items():
            training = dataclasses.replace(config.training, **fields)
            changed = dataclasses.replace(config, run=config.run.with_name(name), training=training)
            trainer = Trainer(changed, loader, guides, guidance.trained_on, ranks)
            trainer.resume()
            trainer.train(stopping, agreement)


if __name__ == "__main__":
    # The DeepSpeed launcher adds --local_rank=N.
    sys.argv = [argument for argument in sys.argv if not argument.startswith("--local_rank")]
    main()
