from __future__ import annotations

import dataclasses
import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from engine import checkpoint
from engine.averages import Averages
from engine.checkpoint import CheckpointError, Counters, Saver
from engine.config import Config
from engine.distributed import alone
from engine.shards import MOMENTS, WholeShards
from sgdm.models.unet import UNet

TRAINED_ON = {"data": "digest", "clusters": None}
RANKS = alone(torch.device("cpu"))


class Run:
    """A network, its optimizer and its averages, as a run of one process has them."""

    def __init__(self, config: Config, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.network = UNet(config.network)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-2, fused=True)
        self.shards = WholeShards(self.network, self.optimizer, RANKS)
        self.averages = Averages(self.shards.masters, config.training.ema_decays)
        self.saver = Saver(config, TRAINED_ON, RANKS)
        self.config = config

    def step(self) -> None:
        for parameter in self.network.parameters():
            parameter.grad = torch.randn(parameter.shape)
        self.optimizer.step()
        self.averages.update(self.averages.steps * 16 + 16)

    def save(self, images: int, loss: float | None = None) -> Path:
        path = self.saver.save(self.shards, self.averages, Counters(images=images, loss=loss))
        self.saver.wait()
        return path

    def load(self) -> tuple[Path | None, Counters, list[str]]:
        return checkpoint.load_newest(self.config, self.shards, self.averages, TRAINED_ON, RANKS)

    def tensors(self) -> list[torch.Tensor]:
        moments = [tensor for name in MOMENTS for tensor in self.shards.moments(name)]
        averages = [tensor for shards in self.averages.shards.values() for tensor in shards]
        return [*self.network.parameters(), *moments, *averages]


@pytest.fixture
def run(config: Config) -> Run:
    run = Run(config)
    run.step()
    return run


def folders(run: Run) -> list[str]:
    return sorted(path.name for path in (run.config.run / "checkpoints").iterdir())


def test_everything_comes_back(run: Run, config: Config) -> None:
    run.step()
    run.save(32, loss=0.5)
    other = Run(config, seed=1)
    last, counters, damaged = other.load()
    assert last == config.run / "checkpoints" / "32" and damaged == []
    assert counters == Counters(images=32, loss=0.5)
    assert all(torch.equal(one, two) for one, two in zip(run.tensors(), other.tensors(), strict=True))
    assert other.shards.steps == 2 and other.averages.steps == 2
    for both in (run, other):
        torch.manual_seed(3)
        both.step()
    assert all(torch.equal(one, two) for one, two in zip(run.tensors(), other.tensors(), strict=True))


def test_averages_are_networks_to_load(run: Run) -> None:
    path = run.save(16)
    network = UNet.from_pretrained(checkpoint.average_folder(path, 0.9), expected=run.config.network)
    for found, expected in zip(network.parameters(), run.averages.shards["ema-0.9"], strict=True):
        assert torch.equal(found, expected)


def test_what_is_saved_is_of_the_moment_of_the_call(run: Run) -> None:
    before = [tensor.clone() for tensor in run.shards.masters]
    path = run.saver.save(run.shards, run.averages, Counters(images=16))
    run.step()  # while it is written
    run.saver.wait()
    saved = load_file(path / "state" / "00000.safetensors")
    for name, expected in zip(run.shards.names, before, strict=True):
        assert torch.equal(saved[f"weight/{name}"], expected)


def test_the_newest_is_the_one_with_most_images(config: Config, run: Run) -> None:
    assert checkpoint.newest(config.run) is None
    run.save(900)
    run.save(1_000)
    assert checkpoint.newest(config.run) == config.run / "checkpoints" / "1000"


def test_only_so_many_are_kept(run: Run) -> None:
    for images in (8, 16, 24):
        run.save(images)
    assert folders(run) == ["16", "24"]


def test_one_an_interval_and_the_best_are_kept_too(config: Config) -> None:
    training = dataclasses.replace(
        config.training, checkpoint_images=10, keep_checkpoints=1, keep_every_images=40, keep_best=True
    )
    run = Run(dataclasses.replace(config, training=training))
    run.step()
    for images, loss in (
        (10, 0.5),
        (20, 0.3),
        (30, 0.4),
        (42, 0.6),
        (47, 0.6),
        (52, 0.7),
        (62, None),
        (82, 0.9),
        (92, 1),
    ):
        run.save(images, loss)
    assert folders(run) == ["20", "42", "82", "92"]


@pytest.mark.parametrize("file", ["state/00000.safetensors", "ema-0.9/model.safetensors", "config.yaml"])
def test_a_damaged_one_is_told_and_the_one_before_it_used(run: Run, file: str) -> None:
    run.save(8)
    last = run.save(16)
    path = last / file
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    found, counters, damaged = run.load()
    assert found == run.config.run / "checkpoints" / "8" and counters.images == 8
    assert damaged == [f"{last} is damaged ({file} is not as it was written)"]
    assert checkpoint.newest(run.config.run) == found, "the damaged one is set aside"
    assert folders(run) == ["16.damaged", "8"]


def test_damaged_counters_are_damage(run: Run) -> None:
    run.save(8)
    (run.save(16) / "state.json").write_text("{")
    found, _, damaged = run.load()
    assert found is not None and found.name == "8" and "not valid JSON" in damaged[0]


def test_a_file_that_is_missing_is_damage(run: Run) -> None:
    run.save(8)
    (run.save(16) / "state" / "00000.safetensors").unlink()
    found, _, damaged = run.load()
    assert found is not None and found.name == "8" and len(damaged) == 1


def test_nothing_whole_is_an_error_and_not_a_new_run(run: Run) -> None:
    (run.save(8) / "state" / "00000.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"every checkpoint .* is damaged, the newest one: .*move them away"):
        run.load()


def test_a_full_disk_leaves_the_last_good_one(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    last = run.save(8)

    def refuse(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save_file", refuse)
        with pytest.raises(CheckpointError, match=r"16 images.*No space left.*last whole one is .*checkpoints/8"):
            run.save(16)
    assert checkpoint.newest(run.config.run) == last and folders(run) == ["8"]
    again = Run(run.config)
    again.load()
    assert again.save(16) == checkpoint.newest(run.config.run)


def test_a_disk_that_is_full_for_the_averages(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """safetensors has an error of its own."""
    last = run.save(8)

    def refuse(network: UNet, folder: Path) -> None:
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr(UNet, "save_pretrained", refuse)
    with pytest.raises(CheckpointError, match="No space left"):
        run.save(16)
    assert checkpoint.newest(run.config.run) == last


def test_a_copy_beside_checkpoints_is_left_alone(run: Run) -> None:
    copy = run.save(8).rename(run.config.run / "checkpoints" / "8-kept")
    for images in (16, 24, 32):
        run.save(images)
    assert copy.exists() and folders(run) == ["24", "32", "8-kept"]


def test_a_kill_while_writing_leaves_nothing_that_looks_whole(run: Run) -> None:
    run.save(8)
    partial = run.config.run / "checkpoints" / ".16.partial"
    partial.mkdir()
    (partial / "state.json").write_text("{}")
    assert checkpoint.newest(run.config.run) == run.config.run / "checkpoints" / "8"
    run.save(24)
    assert not partial.exists()


def test_processes_write_about_as_much_each(run: Run) -> None:
    sizes = [parameter.numel() for parameter in run.network.parameters()]
    owners = checkpoint.owners(run.shards, 4)
    assert owners == sorted(owners) and set(owners) == {0, 1, 2, 3}
    shares = [sum(size for size, owner in zip(sizes, owners, strict=True) if owner == rank) for rank in range(4)]
    assert max(shares) - min(shares) <= 2 * max(sizes)


def test_averages_follow_the_ramp() -> None:
    weight = torch.randn(7)
    averages = Averages([weight], (0.9999, 0.2))
    expected = {decay: weight.clone() for decay in (0.9999, 0.2)}
    for step in range(4):
        weight += 1.0
        averages.update(16 * step + 16)
        for decay, average in expected.items():
            kept = min(decay, (1 + step) / (10 + step))
            expected[decay] = kept * average + (1 - kept) * weight
    for decay, average in expected.items():
        torch.testing.assert_close(averages.shards[f"ema-{decay:g}"][0], average)
