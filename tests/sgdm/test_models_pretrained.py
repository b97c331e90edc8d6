"""Saving a network, loading it again, and saying what is wrong with a folder that does not load."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from torch import nn

import sgdm.models.pretrained as pretrained
from sgdm.conditions import Condition
from sgdm.models.config import UNetConfig
from sgdm.models.pretrained import CONFIG, WEIGHTS, PretrainedError
from sgdm.models.unet import UNet

TINY = UNetConfig(
    image_size=8, channels=8, channel_multipliers=(1, 2), attention_downsamples=(2,), heads=2, num_clusters=5
)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[UNet, Path]:
    network = UNet(TINY).eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    network.save_pretrained(tmp_path / "model")
    return network, tmp_path / "model"


def edit_config(folder: Path, **changed: object) -> None:
    values = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**values, **changed}))


def test_round_trip(saved: tuple[UNet, Path]) -> None:
    network, folder = saved
    loaded = UNet.from_pretrained(folder, expected=TINY).eval()
    assert loaded.config == TINY
    arguments = torch.randn(2, 3, 8, 8), torch.tensor([1.0, 2.0]), Condition(torch.tensor([0, 5]))
    assert torch.equal(loaded(*arguments), network(*arguments))
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG, WEIGHTS]


def test_saving_over_an_older_network_replaces_it(saved: tuple[UNet, Path]) -> None:
    _, folder = saved
    UNet(replace(TINY, num_clusters=7)).save_pretrained(folder)
    assert UNet.from_pretrained(str(folder)).config.num_clusters == 7


def test_an_interrupted_save_does_not_load(saved: tuple[UNet, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    network, folder = saved
    monkeypatch.setattr(pretrained, "save_file", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        network.save_pretrained(folder)
    with pytest.raises(PretrainedError, match=CONFIG):
        UNet.from_pretrained(folder)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_missing_file_is_named(saved: tuple[UNet, Path], name: str) -> None:
    _, folder = saved
    (folder / name).unlink()
    with pytest.raises(PretrainedError, match=f"{name} is missing"):
        UNet.from_pretrained(folder)


def test_another_architecture_names_the_fields(saved: tuple[UNet, Path]) -> None:
    _, folder = saved
    with pytest.raises(PretrainedError, match=r"another architecture: num_clusters is 5 where 9 is expected$"):
        UNet.from_pretrained(folder, expected=replace(TINY, num_clusters=9))


def test_tensors_that_do_not_fit_the_configuration_are_named(saved: tuple[UNet, Path]) -> None:
    _, folder = saved
    edit_config(folder, num_clusters=9)
    with pytest.raises(PretrainedError, match=r"cluster.weight has shape \[6, 16\] instead of \[10, 16\]"):
        UNet.from_pretrained(folder)


def test_missing_and_unknown_tensors_are_named(saved: tuple[UNet, Path]) -> None:
    _, folder = saved
    weights = load_file(folder / WEIGHTS)
    weights["stranger"] = weights.pop("output.bias")
    save_file(weights, folder / WEIGHTS)
    with pytest.raises(PretrainedError, match=r"\(2 differ\): output.bias is missing; stranger is unknown"):
        UNet.from_pretrained(folder)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"architecture": "DiT"}, "the architecture 'DiT', not 'UNet'"),
        ({"colour": 1}, "colour: "),
        ({"channels": "many"}, "channels: "),
        ({"image_size": 9}, "image_size is 9; it must be a multiple of 2"),
    ],
)
def test_a_configuration_that_does_not_fit_is_explained(saved: tuple[UNet, Path], changed: dict, message: str) -> None:
    _, folder = saved
    edit_config(folder, **changed)
    with pytest.raises(PretrainedError, match=message):
        UNet.from_pretrained(folder)


def test_damaged_weights_are_refused(saved: tuple[UNet, Path]) -> None:
    _, folder = saved
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:1000])
    with pytest.raises(PretrainedError, match=f"{WEIGHTS} is damaged"):
        UNet.from_pretrained(folder)


def test_no_such_folder() -> None:
    with pytest.raises(PretrainedError, match="is not a folder, nor the name of a hub repository"):
        UNet.from_pretrained("./no/such/folder")


def test_hub_names_are_fetched_and_a_missing_network_is_explained(
    saved: tuple[UNet, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder = saved
    asked = []

    def fetch(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        if name == "someone/online":
            return str(folder)
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(pretrained.huggingface_hub, "snapshot_download", fetch)
    assert UNet.from_pretrained("someone/online").config == TINY
    assert asked == [("someone/online", [WEIGHTS, CONFIG])]
    with pytest.raises(PretrainedError, match=r"someone/offline.*no connection.*give their folder"):
        UNet.from_pretrained("someone/offline")
