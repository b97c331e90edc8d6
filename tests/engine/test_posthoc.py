from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from engine import checkpoint, console, posthoc, prepare, sample, snapshots, train
from engine.config import Config, PosthocConfig, save_config
from sgdm.models.unet import UNet


@pytest.mark.slow
def test_samples_of_an_average_made_after_training(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    """The command that `sgdm ema` ends with draws with what it has made; without it a tracked average draws."""
    config = dataclasses.replace(
        config,
        annotation=dataclasses.replace(config.annotation, num_clusters=0),
        training=dataclasses.replace(config.training, images=32),
        posthoc=PosthocConfig(lengths=(0.07,)),
    )
    prepare.run(config)
    train.run(config)
    last = checkpoint.newest(config.run)
    assert last is not None
    for images, decay in ((16, 0.9), (32, 0.15)):
        average = UNet.from_pretrained(checkpoint.average_folder(last, decay))
        snapshots.save(config.run, images, {0.05: average})
    save_config(config, config.run / "config.yaml")
    posthoc.run(config)
    command = capsys.readouterr().out.splitlines()[-1].partition("sgdm sample ")[2]
    drawing = console.parse("sample", command.split())
    assert sample.make_plan(drawing).weights == config.run / "posthoc" / "32-length-0.07"
    sample.run(drawing)
    drawn = images_of(config)
    sample.run(config)
    assert sample.make_plan(config).weights == last / "ema-0.9"
    assert (images_of(config) != drawn).any()


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
