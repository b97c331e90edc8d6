from __future__ import annotations

import copy
import dataclasses
import errno
import json
from pathlib import Path

import pytest
import torch

from engine import posthoc, snapshots
from engine.config import Config, PosthocConfig
from engine.config_error import ConfigError
from engine.sampling_config import SamplingConfig
from engine.snapshots import SnapshotError
from kernels.ema import ema_update
from sgdm.averaging import Profile, gamma_of_length, inner_products, nearest_combination, power_decay
from sgdm.models.unet import UNet

STORED, FOLLOWED = (0.05, 0.1), 0.07
END, BATCH, EVERY = 12_800, 32, 800


@pytest.fixture
def trained(config: Config) -> tuple[Config, UNet, float]:
    """A run with snapshots of two averages of weights that walk at random, the average of FOLLOWED, and the norm over
    time of the walk of the weight that went farthest. The weights move by their own size: so does a training."""
    torch.manual_seed(0)
    network = UNet(config.network)
    weights = list(network.parameters())
    start = [weight.detach().clone() for weight in weights]
    averages = {length: copy.deepcopy(network).requires_grad_(False) for length in (*STORED, FOLLOWED)}
    squares = [torch.zeros_like(weight, dtype=torch.float64) for weight in weights]
    for images in range(BATCH, END + 1, BATCH):
        with torch.no_grad():
            for weight, square, first in zip(weights, squares, start, strict=True):
                weight.add_(0.01 * torch.randn_like(weight))
                square.add_((weight - first).double().square() * BATCH)
        decays = [power_decay(gamma_of_length(length), images - BATCH, images) for length in averages]
        ema_update([list(average.parameters()) for average in averages.values()], weights, decays)
        if images % EVERY == 0:
            snapshots.save(config.run, images, {length: averages[length] for length in STORED})
    return config, averages[FOLLOWED], max(float(square.max()) for square in squares) ** 0.5


def asked(config: Config, *lengths: float, images: int | None = None) -> Config:
    return dataclasses.replace(config, posthoc=PosthocConfig(lengths=lengths, images=images))


def random_networks(config: Config, *images: int) -> list[UNet]:
    """Written as snapshots of length 0.05."""
    networks = []
    for seed, end in enumerate(images):
        torch.manual_seed(seed)
        networks.append(UNet(config.network))
        snapshots.save(config.run, end, {0.05: networks[-1]})
    return networks


def test_a_length_that_was_not_followed(
    trained: tuple[Config, UNet, float], capsys: pytest.CaptureFixture[str]
) -> None:
    config, followed, walk = trained
    posthoc.run(asked(config, FOLLOWED))
    made = UNet.from_pretrained(config.run / "posthoc" / "12800-length-0.07", expected=config.network)
    # As in tests/sgdm/test_averaging.py: the error of the profile bounds that of every weight. The rest is float32.
    wanted = Profile(FOLLOWED, END)
    error = nearest_combination(wanted, snapshots.find(config.run)).error
    bound = error * float(inner_products([wanted], [wanted])[0, 0]) ** 0.5 * walk
    differences, nearest = [], []
    stored = UNet.from_pretrained(config.run / "snapshots" / "12800" / "length-0.05").state_dict()
    for name, tensor in followed.state_dict().items():
        differences.append((made.state_dict()[name] - tensor).abs().flatten())
        nearest.append((stored[name] - tensor).abs().flatten())
    assert torch.cat(differences).max() < bound + 1e-5
    assert torch.cat(differences).mean() < torch.cat(nearest).mean() / 20
    shown = capsys.readouterr().out
    assert "of 32 snapshots of length 0.05 and 0.1, relative error of its profile 0.00" in shown
    assert f"-> {config.run / 'posthoc' / '12800-length-0.07'}" in shown
    assert f"sgdm sample --config {config.run / 'config.yaml'} --sampling.ema-length 0.07\n" in shown


def test_a_sum_is_that_of_the_weights(config: Config, tmp_path: Path) -> None:
    first, second = random_networks(config, 8, 16)
    folders = [snapshots.folder_of(config.run, snapshot) for snapshot in snapshots.find(config.run)]
    snapshots.combine({folders[0]: -399.0, folders[1]: 400.0}, config.network, tmp_path / "sum")
    made = UNet.from_pretrained(tmp_path / "sum", expected=config.network).state_dict()
    for name, tensor in made.items():
        assert tensor.dtype == torch.float32
        expected = 400.0 * second.state_dict()[name].double() - 399.0 * first.state_dict()[name].double()
        torch.testing.assert_close(tensor, expected.float(), rtol=1e-7, atol=0)
    assert [path.name for path in tmp_path.glob("sum*")] == ["sum"] and not list(tmp_path.glob(".*"))


def test_whole_snapshots_in_order(config: Config) -> None:
    assert snapshots.find(config.run) == []
    network = UNet(config.network)
    for images in (1_000, 900):
        snapshots.save(config.run, images, dict.fromkeys((0.1, 0.05), network))
    (config.run / "snapshots" / ".1100.partial" / "length-0.05").mkdir(parents=True)
    (config.run / "snapshots" / "1000" / "length-0.1" / "config.json").unlink()
    assert snapshots.find(config.run) == [Profile(0.05, 900), Profile(0.1, 900), Profile(0.05, 1_000)]
    snapshots.save(config.run, 1_000, {0.1: network})  # what a resumed training writes again
    assert snapshots.find(config.run)[2:] == [Profile(0.1, 1_000)]


def test_a_training_that_starts_again_forgets_what_was_later(config: Config) -> None:
    random_networks(config, 8, 16, 24)
    for images in (16, 24):
        posthoc.run(asked(config, 0.06, images=images))
    snapshots.forget_after(config.run, 16)
    assert snapshots.find(config.run) == [Profile(0.05, 8), Profile(0.05, 16)]
    assert [path.name for path in (config.run / "posthoc").iterdir()] == ["16-length-0.06"]
    snapshots.forget_after(config.run / "new", 0)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "model.safetensors").write_bytes(b"half"), "missing or damaged"),
        (lambda folder: truncate(folder / "model.safetensors"), "missing or damaged"),
        (lambda folder: (folder / "model.safetensors").unlink(), "missing or damaged"),
        (lambda folder: (folder / "config.json").write_text("{"), "missing or damaged"),
        (lambda folder: other_heads(folder / "config.json"), "another architecture than the run"),
    ],
)
def test_a_damaged_snapshot_is_named(config: Config, damage: object, message: str) -> None:
    random_networks(config, 8, 16)
    folder = snapshots.folder_of(config.run, Profile(0.05, 8))
    assert callable(damage)
    damage(folder)
    with pytest.raises(SnapshotError, match=rf"snapshots/8/length-0\.05 is (of )?{message}.*: delete it"):
        posthoc.run(asked(config, 0.06))
    assert not (config.run / "posthoc").exists()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def other_heads(path: Path) -> None:
    """The same tensors, of another network."""
    path.write_text(json.dumps(json.loads(path.read_text()) | {"heads": 1}))


def test_a_snapshot_that_is_not_there_is_named(config: Config, tmp_path: Path) -> None:
    missing = snapshots.folder_of(config.run, Profile(0.05, 8))
    with pytest.raises(SnapshotError, match=r"snapshots/8/length-0\.05 is missing .*config\.json"):
        snapshots.combine({missing: 1.0}, config.network, tmp_path / "sum")


def test_a_full_disk_leaves_what_was_there(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    random_networks(config, 8)

    def refuse(network: UNet, folder: Path) -> None:
        folder.mkdir(parents=True)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(UNet, "save_pretrained", refuse)
    with pytest.raises(SnapshotError, match=r"snapshots/8 could not be written \(.*No space left.*make room"):
        snapshots.save(config.run, 8, {0.05: UNet(config.network)})
    assert snapshots.find(config.run) == [Profile(0.05, 8)]
    assert [path.name for path in (config.run / "snapshots").iterdir()] == ["8"]


def test_refusals_name_the_way_out(config: Config) -> None:
    with pytest.raises(ValueError, match=r"lengths is empty: .*--length 0\.05"):
        posthoc.run(config)
    with pytest.raises(ValueError, match=r"no snapshots: train with --training\.ema-lengths"):
        posthoc.run(asked(config, 0.05))
    random_networks(config, 8, 16)
    with pytest.raises(ValueError, match=r"no snapshot at 12 images .*: give one of \[8, 16\]"):
        posthoc.run(asked(config, 0.05, images=12))


def test_an_average_to_draw_with_is_found_or_how_to_make_it(config: Config) -> None:
    random_networks(config, 8, 16)
    posthoc.run(asked(config, 0.06, images=8))
    with pytest.raises(
        ValueError,
        match=r"16-length-0\.06 is missing \(there: 8-length-0\.06\): .*sgdm ema --config .* --length 0\.06$",
    ):
        posthoc.find(config, 0.06)
    earlier = dataclasses.replace(config, posthoc=PosthocConfig(images=8))
    assert posthoc.find(earlier, 0.06) == config.run / "posthoc" / "8-length-0.06"
    posthoc.run(asked(config, 0.06))
    assert posthoc.find(config, 0.06) == config.run / "posthoc" / "16-length-0.06"


def test_configurations_that_cannot_be_run(config: Config) -> None:
    def training(**changes: object) -> Config:
        return dataclasses.replace(config, training=dataclasses.replace(config.training, **changes))

    for lengths in ((0.05, 0.3), (0.0,), (0.05, 0.05)):
        with pytest.raises(ConfigError, match=r"training\.ema_lengths is .*between 0 and 0\.2887"):
            training(ema_lengths=lengths, snapshot_images=4)
        with pytest.raises(ConfigError, match=r"posthoc\.lengths"):
            asked(config, *lengths)
    with pytest.raises(ConfigError, match=r"snapshot_images is 1,000,000, .* of 64 images: give about a sixteenth"):
        training(ema_lengths=(0.05,))
    with pytest.raises(ConfigError, match=r"snapshot_images is 0"):
        training(snapshot_images=0)
    with pytest.raises(ConfigError, match=r"ema_decay is 0\.9 and sampling\.ema_length 0\.05: give one"):
        SamplingConfig(ema_decay=0.9, ema_length=0.05)
