from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from sgdm.annotate.agreement import purity as purity_of
from sgdm.annotate.clusters import fit_clusters
from sgdm.annotate.fit import fit
from sgdm.annotate.names import Network, Objective
from sgdm.annotate.selfsup import train_encoder, training
from sgdm.annotate.selfsup.training import refuse_collapse

CPU = torch.device("cpu")
OBJECTIVES = get_args(Objective)


class KillError(Exception):
    pass


def textures(count: int) -> tuple[Tensor, np.ndarray]:
    """Waves across, down or both ways, of any phase, length, contrast and brightness: pixels say little about which."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, count)
    y, x = np.mgrid[:32, :32]
    images = np.empty((count, 3, 32, 32))
    for image, label in zip(images, labels, strict=True):
        length, (phase_x, phase_y) = random.uniform(6, 12), random.uniform(0, 2 * np.pi, 2)
        across, down = np.sin(2 * np.pi * x / length + phase_x), np.sin(2 * np.pi * y / length + phase_y)
        wave = [across, down, 1.4 * across * down][label]
        image[:] = 128 + random.uniform(-40, 40) + random.uniform(30, 70) * wave
    return torch.from_numpy(np.clip(images + random.normal(0, 35, images.shape), 0, 255).astype(np.uint8)), labels


def purity(features: np.ndarray, labels: np.ndarray) -> float:
    return purity_of(fit_clusters(features, [3], seed=0)[0].ids, labels)


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "BATCH", 64)


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize(
    ("objective", "budget", "expected"),
    [
        ("neighbours", 5000, 0.9),
        ("simclr", 5000, 0.9),
        ("vicreg", 5000, 0.9),
        pytest.param("dino", 12_000, 0.6, marks=pytest.mark.slow),
    ],
)
def test_it_groups_textures_that_pixels_do_not(objective: Objective, budget: int, expected: float) -> None:
    images, labels = textures(256)
    assert purity(images.flatten(1).numpy().astype(np.float32), labels) < min(0.55, expected)
    encoder = train_encoder(images, objective=objective, seed=0, images_budget=budget, device=CPU)
    assert encoder.name == f"self-supervised convnet ({objective})"
    assert purity(encoder(images).numpy(), labels) > expected


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("network", get_args(Network))
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_killed_training_goes_on_to_the_same_weights(
    objective: Objective, network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "BATCH", 16)
    monkeypatch.setattr(training, "fit", partial(fit, steps_a_checkpoint=2))
    images, checkpoint, seen = textures(64)[0], tmp_path / "fit.pt", []
    train = partial(
        train_encoder, images, objective=objective, network=network, seed=3, images_budget=6 * 16, device=CPU
    )

    def kill(count: int) -> None:
        seen.append(count)
        if len(seen) == 5:  # in the second round of neighbours
            raise KillError

    with pytest.raises(KillError):
        train(checkpoint=checkpoint, advance=kill)
    seen = []
    again = train(checkpoint=checkpoint, advance=seen.append)
    assert seen[0] == 4 * 16, "goes on from the last checkpoint"
    assert sum(seen) == 6 * 16
    whole = train()
    assert all(
        torch.equal(tensor, whole.network.state_dict()[name]) for name, tensor in again.network.state_dict().items()
    )
    assert again.digest == whole.digest


def test_the_checkpoint_of_another_objective_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "fit", partial(fit, steps_a_checkpoint=1))
    train = partial(train_encoder, textures(64)[0], seed=0, images_budget=128, device=CPU, checkpoint=tmp_path / "a.pt")
    train(objective="simclr")
    with pytest.raises(ValueError, match=r"a\.pt is no checkpoint of this training"):
        train(objective="dino")


def test_features_that_are_all_the_same_are_refused() -> None:
    images = torch.full((64, 3, 32, 32), 100, dtype=torch.uint8)
    images[0, 0, 0, 0] = 101  # images that nothing can tell apart, and yet not the same
    with pytest.raises(ValueError, match=r"self-supervised convnet \(simclr\) encoder gives all images the same"):
        train_encoder(images, objective="simclr", seed=0, images_budget=128, device=CPU)


def test_features_that_differ_are_no_collapse() -> None:
    refuse_collapse(torch.tensor([[1.0, 0.1], [1.0, -0.1]]), "small")
    with pytest.raises(ValueError, match=r"the small encoder.*images_budget"):
        refuse_collapse(torch.tensor([[1.0, 2.0], [3.0, 6.0]]), "small")
    with pytest.raises(ValueError, match="the small encoder"):
        refuse_collapse(torch.full((2, 2), float("nan")), "small")


def test_importing_the_package_does_not_import_lightly() -> None:
    """It takes seconds, which programs that need it not should not wait for."""
    code = "import sys, sgdm.annotate.selfsup; sys.exit('lightly' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
