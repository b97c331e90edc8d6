from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from engine import checkpoint, distributed
from engine.checkpoint import CheckpointError
from engine.config import Config
from engine.ema import Averages
from sgdm.models.unet import UNet


class FakeEngine:
    """Stands in for DeepSpeed's engine: a file of state, or a disk that is full."""

    def __init__(self) -> None:
        self.disk_is_full = False

    def save_checkpoint(self, folder: str, tag: str, save_latest: bool) -> None:
        (Path(folder) / tag).mkdir()
        (Path(folder) / tag / "state").write_bytes(b"half")
        if self.disk_is_full:
            raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def save(config: Config) -> Any:
    engine, ranks = FakeEngine(), distributed.initialize()
    averages = Averages(UNet(config.network), config.training.ema_decays)

    def save_at(images: int, disk_is_full: bool = False) -> Path:
        engine.disk_is_full = disk_is_full
        return checkpoint.save(config, engine, averages, images, {"data": "digest", "clusters": None}, ranks)

    return save_at


def test_the_newest_is_the_one_with_most_images(config: Config, save: Any) -> None:
    assert checkpoint.newest(config.run) is None
    save(900)
    save(1_000)
    assert checkpoint.newest(config.run) == config.run / "checkpoints" / "1000"


def test_only_so_many_are_kept(config: Config, save: Any) -> None:
    for images in (8, 16, 24):
        save(images)
    assert sorted(path.name for path in (config.run / "checkpoints").iterdir()) == ["16", "24"]


def test_a_full_disk_leaves_the_last_good_one(config: Config, save: Any) -> None:
    last = save(8)
    with pytest.raises(CheckpointError, match=r"16 images.*No space left.*last whole one is .*checkpoints/8"):
        save(16, disk_is_full=True)
    assert checkpoint.newest(config.run) == last
    assert [path.name for path in (config.run / "checkpoints").iterdir()] == ["8"]
    assert save(16) == checkpoint.newest(config.run)


def test_a_disk_that_is_full_for_the_averages(config: Config, save: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """safetensors has an error of its own."""
    last = save(8)

    def refuse(network: UNet, folder: Path) -> None:
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr(UNet, "save_pretrained", refuse)
    with pytest.raises(CheckpointError, match="No space left"):
        save(16)
    assert checkpoint.newest(config.run) == last


def test_a_copy_beside_checkpoints_is_left_alone(config: Config, save: Any) -> None:
    copy = save(8).rename(config.run / "checkpoints" / "8-kept")
    for images in (16, 24, 32):
        save(images)
    assert copy.exists() and checkpoint.newest(config.run) == config.run / "checkpoints" / "32"


def test_a_kill_while_writing_leaves_nothing_that_looks_whole(config: Config, save: Any) -> None:
    save(8)
    partial = config.run / "checkpoints" / ".16.partial"
    partial.mkdir()
    (partial / "state.json").write_text("{}")
    assert checkpoint.newest(config.run) == config.run / "checkpoints" / "8"
    save(24)
    assert not partial.exists()


def test_averages_follow_the_ramp(config: Config) -> None:
    network = UNet(config.network)
    averages = Averages(network, (0.9999, 0.2))
    weight = network.output.weight
    expected = {decay: weight.detach().clone() for decay in (0.9999, 0.2)}
    for step in range(4):
        with torch.no_grad():
            weight.add_(1.0)
        averages.update()
        for decay, average in expected.items():
            kept = min(decay, (1 + step) / (10 + step))
            expected[decay] = kept * average + (1 - kept) * weight.detach()
    for decay, average in expected.items():
        torch.testing.assert_close(averages.networks[decay].output.weight, average)
