"""Snapshots of the averages of training.ema_lengths, and averages of other lengths that are made of them.

In the run folder, each a `UNet.save_pretrained` folder in float32:
snapshots/<images seen>/length-<sigma_rel>/   written by the training
posthoc/<images seen>-length-<sigma_rel>/     combined of them by `sgdm ema` (engine/posthoc.py)"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from sgdm.averaging import Profile
from sgdm.models.config import UNetConfig
from sgdm.models.pretrained import CONFIG, WEIGHTS, read_config
from sgdm.models.unet import UNet

LENGTH = "length-"


class SnapshotError(ValueError):
    """A snapshot that cannot be written, or is missing or damaged; the message names it and the way out."""


def folder_of(run: Path, snapshot: Profile) -> Path:
    return run / "snapshots" / str(snapshot.images) / f"{LENGTH}{snapshot.length}"


def combined_folder_of(run: Path, average: Profile) -> Path:
    return run / "posthoc" / f"{average.images}-{LENGTH}{average.length}"


def find(run: Path) -> list[Profile]:
    """The whole snapshots of a run, by their ends and lengths."""
    whole = [path.parent for path in (run / "snapshots").glob(f"*/{LENGTH}*/{CONFIG}") if path.parts[-3].isdigit()]
    found = [Profile(float(path.name.removeprefix(LENGTH)), int(path.parent.name)) for path in whole]
    return sorted(found, key=lambda snapshot: (snapshot.images, snapshot.length))


def save(run: Path, images: int, averages: Mapping[float, UNet]) -> None:
    """Writes the averages, by length, as they are at this many images; they appear together or not at all.

    One process alone calls it. SnapshotError where they cannot be written."""
    with _whole_folder(run / "snapshots" / str(images)) as partial:
        for length, network in averages.items():
            network.save_pretrained(partial / f"{LENGTH}{length}")


def forget_after(run: Path, images: int) -> None:
    """Removes what is past the checkpoint that a training goes on from: it will come to other weights there."""
    for path in [*(run / "snapshots").glob("*"), *(run / "posthoc").glob("*")]:
        end = path.name.partition("-")[0]
        if end.isdigit() and int(end) > images:
            shutil.rmtree(path)


def combine(weights: Mapping[Path, float], config: UNetConfig, folder: Path) -> None:
    """Writes the weighted sum of saved networks of this architecture as another one.

    Tensor by tensor: beside the sum, one network in float32, there is one tensor at a time of the others. A sum is
    taken in float64, which costs nothing here where reading does, and rounded to float32 once: the terms of a sharper
    average than any that is stored are several times the result and of both signs. SnapshotError where a network is
    missing, damaged or of another architecture, and where the sum cannot be written."""
    network = UNet(config).requires_grad_(False)
    with ExitStack() as stack:
        files = [(stack.enter_context(_open(path, network)), weight) for path, weight in weights.items()]
        for name, tensor in network.state_dict().items():
            total = torch.zeros_like(tensor, dtype=torch.float64)
            for file, weight in files:
                total.add_(file.get_tensor(name), alpha=weight)
            tensor.copy_(total)
    with _whole_folder(folder) as partial:
        network.save_pretrained(partial)


def _open(folder: Path, network: UNet) -> Any:
    """The weights of a saved network, whose names and shapes are those of this one."""
    way_out = "delete it, and the other snapshots are combined, a little less exactly"
    expected = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    try:
        config = read_config(folder / CONFIG, architecture="UNet")
        file = safe_open(folder / WEIGHTS, framework="pt")
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except (ValueError, SafetensorError, OSError) as error:  # PretrainedError is a ValueError
        raise SnapshotError(f"{folder} is missing or damaged ({error}): {way_out}") from error
    if config != network.config or shapes != expected:
        raise SnapshotError(f"{folder} is of another architecture than the run: {way_out}")
    return file


@contextmanager
def _whole_folder(folder: Path) -> Iterator[Path]:
    """Yields a folder that takes the place of `folder` on success, and is removed on any error."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # what a kill left behind
    try:
        yield partial
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
    # A full disk is an error of its own where safetensors writes.
    except (OSError, SafetensorError) as error:
        raise SnapshotError(f"{folder} could not be written ({error}): make room and run the same again") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
