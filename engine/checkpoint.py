"""Checkpoints that are whole or absent: checkpoints/<images seen>/ with DeepSpeed's state, the averages, the counters.

DeepSpeed's own files are pickles: only those of the run's own folder are ever loaded. Averages are
`UNet.save_pretrained` folders (safetensors and JSON) and are what anyone else should load."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch.distributed

from engine.config import Config, save_config
from engine.distributed import Ranks
from engine.ema import Averages
from sgdm.files import read_json, write_json
from sgdm.models.pretrained import PretrainedError
from sgdm.models.unet import UNet

STATE = "deepspeed"


class CheckpointError(ValueError):
    """A checkpoint that cannot be written or does not fit; the message names it and the way out."""


def average_folder(checkpoint: Path, decay: float) -> Path:
    return checkpoint / f"ema-{decay:g}"


def newest(run: Path) -> Path | None:
    """The last whole checkpoint of a run."""
    whole = [path for path in (run / "checkpoints").glob("[0-9]*") if (path / "state.json").is_file()]
    return max(whole, key=images_of, default=None)


def images_of(checkpoint: Path) -> int:
    return int(checkpoint.name)


def save(
    run: Path, engine: Any, averages: Averages, images: int, config: Config, data_digest: str, ranks: Ranks
) -> Path:
    """Writes checkpoints/<images>; every process must call it. The newest whole one stays whatever happens here."""
    folder = run / "checkpoints"
    partial, final = folder / f".{images}.partial", folder / str(images)
    if ranks.first:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    torch.distributed.barrier()
    failure: Exception | None = None
    try:
        engine.save_checkpoint(str(partial), tag=STATE, save_latest=False)
        if ranks.first:
            for decay, network in averages.networks.items():
                network.save_pretrained(average_folder(partial, decay))
            save_config(config, partial / "config.yaml")
            state = {"images": images, "ema_steps": averages.steps, "data_digest": data_digest}
            write_json(partial / "state.json", state)
    except (
        OSError,
        RuntimeError,
    ) as error:  # a full disk is a RuntimeError where torch's zip writer meets it
        failure = error
    if not ranks.everyone(failure is None):
        if ranks.first:
            shutil.rmtree(partial, ignore_errors=True)
        last = newest(run)
        kept = f"the last whole one is {last}" if last else "there is no earlier one"
        raise CheckpointError(
            f"the checkpoint at {images:,} images could not be written to {folder} "
            f"({failure or 'on another process'}); {kept}; make room or repair the disk and run the same command again"
        ) from failure
    if ranks.first:
        _sync(partial)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        _sync_folder(folder)
        _forget_old(folder, config.training.keep_checkpoints)
    torch.distributed.barrier()
    return final


def load(checkpoint: Path, engine: Any, averages: Averages, config: Config, data_digest: str) -> int:
    """Restores everything of a checkpoint of this run; returns the images seen. CheckpointError if it does not fit."""
    check(checkpoint, config, data_digest)
    state = read_json(checkpoint / "state.json")
    engine.load_checkpoint(str(checkpoint), tag=STATE)
    for decay, network in averages.networks.items():
        saved = UNet.from_pretrained(average_folder(checkpoint, decay))
        network.load_state_dict(saved.state_dict())
    averages.steps = state["ema_steps"]
    return int(state["images"])


def check(checkpoint: Path, config: Config, data_digest: str) -> None:
    """Refuses a checkpoint of another network, other averages or another data set, naming what differs."""
    for decay in config.training.ema_decays:
        folder = average_folder(checkpoint, decay)
        if not folder.is_dir():
            tracked = ", ".join(path.name for path in sorted(checkpoint.glob("ema-*")))
            raise CheckpointError(
                f"{checkpoint} has no average of decay {decay:g} (it has {tracked}): "
                "use its decays in training.ema_decays, or another --run folder"
            )
        try:
            UNet.from_pretrained(folder, expected=config.network)
        except PretrainedError as error:
            raise CheckpointError(
                f"{error}: use --config {checkpoint / 'config.yaml'}, or another --run folder"
            ) from error
    found = read_json(checkpoint / "state.json")["data_digest"]
    if found != data_digest:
        raise CheckpointError(
            f"{checkpoint} was trained on data {found}, these are {data_digest}: use another --run folder"
        )


def _forget_old(folder: Path, keep: int) -> None:
    whole = sorted((path for path in folder.glob("[0-9]*")), key=images_of)
    for path in whole[:-keep]:
        shutil.rmtree(path, ignore_errors=True)


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
