"""Checkpoints that are whole or absent: checkpoints/<images seen>/ with DeepSpeed's state, the averages, the counters.

DeepSpeed's own files are pickles: only those of the run's own folder are ever loaded. Averages are
`UNet.save_pretrained` folders (safetensors and JSON) and are what anyone else should load."""

from __future__ import annotations

import dataclasses
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch.distributed
from safetensors import SafetensorError

from engine.config import Config, load_config, save_config
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
    return max(_whole(run / "checkpoints"), key=images_of, default=None)


def images_of(checkpoint: Path) -> int:
    return int(checkpoint.name)


def save(
    config: Config,
    engine: Any,
    averages: Averages,
    images: int,
    trained_on: dict[str, str | None],
    ranks: Ranks,
) -> Path:
    """Writes checkpoints/<images>; every process must call it. The newest whole one stays whatever happens here.

    CheckpointError where it cannot be written. The process that meets it ends, and the launcher ends the others."""
    folder = config.run / "checkpoints"
    partial, final = folder / f".{images}.partial", folder / str(images)
    try:
        if ranks.first:
            _forget_partial(folder)
            partial.mkdir(parents=True)
        torch.distributed.barrier()
        engine.save_checkpoint(str(partial), tag=STATE, save_latest=False)
        if ranks.first:
            for decay, network in averages.networks.items():
                network.save_pretrained(average_folder(partial, decay))
            save_config(config, partial / "config.yaml")
            state = {
                "images": images,
                "ema_steps": averages.steps,
                "trained_on": trained_on,
                "processes": ranks.world_size,
                "zero_stage": config.training.zero_stage,
            }
            write_json(partial / "state.json", state)
            _sync(partial)
    # A full disk is a RuntimeError where torch writes, and an error of its own where safetensors does.
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        last = newest(config.run)
        kept = f"the last whole one is {last}" if last else "there is no earlier one"
        raise CheckpointError(
            f"the checkpoint at {images:,} images could not be written to {folder} ({error}); {kept}; "
            "make room or repair the disk and run the same command again"
        ) from error
    torch.distributed.barrier()  # the shards of all processes are there
    if ranks.first:
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        _sync_folder(folder)
        _forget_old(folder, config.training.keep_checkpoints)
    torch.distributed.barrier()
    return final


def load(checkpoint: Path, engine: Any, averages: Averages, config: Config, ranks: Ranks) -> int:
    """Restores everything of a checkpoint that `check` has passed; returns the images seen.

    CheckpointError where it is damaged, or sharded over another number of processes."""
    state = read_json(checkpoint / "state.json")
    sharding, wanted = (state["zero_stage"], state["processes"]), (config.training.zero_stage, ranks.world_size)
    if sharding != wanted and (sharding[0] or wanted[0]):
        raise CheckpointError(
            f"{checkpoint} is of ZeRO stage {sharding[0]} on {sharding[1]} process(es), this run of stage {wanted[0]} "
            f"on {wanted[1]}: go on with --training.zero-stage {sharding[0]} and {sharding[1]} process(es)"
        )
    try:
        path, _ = engine.load_checkpoint(str(checkpoint), tag=STATE)
        for decay, network in averages.networks.items():
            saved = UNet.from_pretrained(average_folder(checkpoint, decay), expected=config.network)
            network.load_state_dict(saved.state_dict())
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, PretrainedError) as error:
        raise CheckpointError(_damaged(checkpoint, str(error))) from error
    if path is None:
        raise CheckpointError(_damaged(checkpoint, f"nothing to load in {checkpoint / STATE}"))
    averages.steps = state["ema_steps"]
    return int(state["images"])


def check(checkpoint: Path, config: Config, trained_on: dict[str, str | None]) -> None:
    """Refuses a checkpoint of another network, objective, averages, images or clusters, naming what differs."""
    trained = load_config(checkpoint / "config.yaml")
    way_out = f"use --config {checkpoint / 'config.yaml'}, or another --run folder"
    for what, found, wanted in (
        ("architecture", trained.network, config.network),
        ("objective", trained.diffusion, config.diffusion),
    ):
        if found != wanted:
            raise CheckpointError(f"{checkpoint} is of another {what}: {_differences(found, wanted)}: {way_out}")
    for decay in config.training.ema_decays:
        if decay not in trained.training.ema_decays:
            raise CheckpointError(
                f"{checkpoint} has no average of decay {decay:g} (it has {trained.training.ema_decays}): {way_out}"
            )
    found_on = read_json(checkpoint / "state.json")["trained_on"]
    for part, digest in trained_on.items():
        if found_on.get(part) != digest:
            found = found_on.get(part)
            raise CheckpointError(f"{checkpoint} was trained on {part} {found}, these are {digest}: {way_out}")


def _differences(found: Any, wanted: Any) -> str:
    return ", ".join(
        f"{field.name} is {getattr(found, field.name)} where {getattr(wanted, field.name)} is expected"
        for field in dataclasses.fields(found)
        if getattr(found, field.name) != getattr(wanted, field.name)
    )


def _damaged(checkpoint: Path, reason: str) -> str:
    return f"{checkpoint} is damaged ({reason}): delete it, and the same command goes on from the one before"


def _whole(folder: Path) -> list[Path]:
    return [path for path in folder.glob("*") if path.name.isdigit() and (path / "state.json").is_file()]


def _forget_old(folder: Path, keep: int) -> None:
    for path in sorted(_whole(folder), key=images_of)[:-keep]:
        shutil.rmtree(path, ignore_errors=True)


def _forget_partial(folder: Path) -> None:
    """What a kill left behind."""
    for path in folder.glob(".*.partial"):
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
