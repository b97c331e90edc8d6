from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from engine import checkpoint, console, posthoc, prepare, sample, train
from engine.config import Config, PosthocConfig, save_config
from engine.drawing import average_folder, open_run
from engine.points import points
from sgdm.models.unet import UNet


@pytest.fixture
def averaging(config: Config) -> Config:
    """30 steps without a condition, which keep 15 snapshots of two lengths."""
    training = dataclasses.replace(
        config.training, images=480, learning_rate=3e-3, ema_lengths=(0.05, 0.1), snapshot_images=32
    )
    config = dataclasses.replace(
        config, annotation=dataclasses.replace(config.annotation, num_clusters=0), training=training
    )
    prepare.run(config)
    train.run(config)
    return config


@pytest.mark.slow
def test_an_average_made_after_training_is_the_one_that_would_have_been_tracked(averaging: Config) -> None:
    """The same training again, which follows that length itself."""
    training = dataclasses.replace(averaging.training, ema_lengths=(0.075,))
    tracked = dataclasses.replace(averaging, run=averaging.run.with_name("tracked"), training=training)
    train.run(tracked)
    posthoc.run(dataclasses.replace(averaging, posthoc=PosthocConfig(lengths=(0.075,))))
    direct = weights(tracked.run / "snapshots" / "480" / "length-0.075")
    made = weights(averaging.run / "posthoc" / "480-length-0.075")
    nearest = min(
        (weights(averaging.run / "snapshots" / "480" / f"length-{length}") - direct).norm() for length in (0.05, 0.1)
    )
    assert (made - direct).norm() < nearest / 20


def weights(folder: Path) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in UNet.from_pretrained(folder).parameters()])


@pytest.mark.slow
def test_samples_of_an_average_made_after_training(averaging: Config, capsys: pytest.CaptureFixture[str]) -> None:
    """The command that `sgdm ema` ends with draws with what it has made; without it a tracked average draws."""
    config = dataclasses.replace(averaging, posthoc=PosthocConfig(lengths=(0.07,)))
    save_config(config, config.run / "config.yaml")
    posthoc.run(config)
    command = capsys.readouterr().out.splitlines()[-1].partition("sgdm sample ")[2]
    drawing = console.parse("sample", command.split())
    assert weights_of(drawing) == config.run / "posthoc" / "480-length-0.07"
    sample.run(drawing)
    drawn = images_of(config)
    sample.run(config)
    last = checkpoint.newest(config.run)
    assert last is not None and weights_of(config) == last / "ema-0.9"
    assert (images_of(config) != drawn).any()


def weights_of(config: Config) -> Path:
    return average_folder(config, open_run(config), points(config)[0].ema)


def images_of(config: Config) -> np.ndarray:
    with np.load(config.run / "samples" / "guidance-0.npz") as file:
        return np.array(file["image"])


def test_the_program(config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`sgdm ema` runs engine/posthoc.py, with --length for --posthoc.lengths."""
    save_config(config, tmp_path / "config.yaml")
    arguments = ["--config", str(tmp_path / "config.yaml"), "--length", "0.05", "0.07"]
    assert console.parse("ema", arguments).posthoc.lengths == (0.05, 0.07)
    with pytest.raises(SystemExit), pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["sgdm", "ema", *arguments])
        console.main()
    assert "ema: " in (shown := capsys.readouterr().err) and "has no snapshots" in shown
