"""Training of an encoder of our own, by any objective and with any network."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from sgdm.annotate.fit import fit
from sgdm.annotate.names import Network, Objective
from sgdm.annotate.selfsup.encoder import Images, OwnEncoder, centred
from sgdm.annotate.selfsup.learner import Learner
from sgdm.annotate.selfsup.neighbours import Neighbours
from sgdm.annotate.selfsup.networks import NETWORKS
from sgdm.annotate.selfsup.sample import draw_sample, seeded
from sgdm.progress import Advance, ignore

SMALLEST_SET = 64  # images; fewer have no neighbourhoods worth learning
DIMENSION = 64
BATCH = 256
LOOKED_AT = 1024  # images, to see whether features differ
SMALLEST_SPREAD = 1e-4  # of the directions of features, from 0 where all are the same to 1


def train_encoder(
    images: Images,
    *,
    objective: Objective = "neighbours",
    network: Network = "convnet",
    seed: int,
    images_budget: int,
    device: torch.device,
    checkpoint: Path | None = None,
    advance: Advance = ignore,
) -> OwnEncoder:
    """An encoder of our own, trained on at most 65,536 of the `images` (uint8 [N, 3, H, W], H and W any).

    `images_budget` is the number of images that training looks at, however many views an objective takes of each.
    The same seed, device and number of threads give the same encoder. `checkpoint` is a file of this very training,
    which goes on from it after a kill (sgdm.annotate.fit.fit). ValueError where there are fewer than 64 images, or
    where the objective failed: all images have the same feature.
    """
    if len(images) < SMALLEST_SET:
        raise ValueError(
            f"an encoder cannot learn from {len(images)} images: give at least {SMALLEST_SET}, or use whitened pixels"
        )
    sample = draw_sample(images, seed).to(device)
    batch = min(BATCH, len(sample))
    steps = max(1, images_budget // batch)
    with seeded(seed, device):
        learner = _learner(objective, network, sample, steps, seed).to(device)

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(sample), (batch,), generator=generator, device=device)
        return learner.loss(rows, centred(sample[rows]), generator)

    fit(
        learner,
        loss_of,
        steps=steps,
        batch=batch,
        learning_rate=learner.learning_rate,
        momentum=learner.momentum,
        cycles=learner.rounds,
        seed=seed,
        after_step=learner.after_step,
        checkpoint=checkpoint,
        advance=advance,
    )
    encoder = OwnEncoder(learner.encoder, objective, device)
    refuse_collapse(encoder(sample[:LOOKED_AT]), encoder.name)
    return encoder


def _learner(objective: Objective, network: Network, sample: Tensor, steps: int, seed: int) -> Learner:
    dimension = min(DIMENSION, len(sample) // 4)
    encoder = NETWORKS[network](dimension).to(sample.device)
    if objective == "neighbours":
        return Neighbours(encoder, sample, dimension=dimension, steps=steps, seed=seed)
    from sgdm.annotate.selfsup import joint_embedding  # lightly takes seconds to import

    if objective == "dino":
        return joint_embedding.Dino(encoder, NETWORKS[network](dimension), dimension=dimension, steps=steps)
    return {"simclr": joint_embedding.simclr, "vicreg": joint_embedding.vicreg}[objective](encoder, dimension)


def refuse_collapse(features: Tensor, name: str) -> None:
    """ValueError where the features [N, D] of different images all point in one direction."""
    spread = 1 - F.normalize(features).mean(dim=0).square().sum()
    if not float(spread) > SMALLEST_SPREAD:
        raise ValueError(
            f"the {name} encoder gives all images the same feature (spread {float(spread):.1e}): train it on more "
            "images (images_budget), with another seed, or by the objective neighbours, whose targets cannot collapse"
        )
