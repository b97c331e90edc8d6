"""Checkpoints that are whole or absent: checkpoints/<images seen>/.

`state/` has weights and moments as whole tensors by name, a file a process; `ema-<decay>/` and `length-<length>/` the
averages as `UNet.save_pretrained` folders, which are what anyone else should load; state.json the counters, and the
SHA-256 of every file. Nothing in it depends on the number of processes or the ZeRO stage, so any other number and
stage goes on from it, and nothing is pickled.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from engine.averages import Averages, decay_name
from engine.config import Config, load_config, save_config
from engine.distributed import Ranks
from engine.shards import MOMENTS, Shards
from sgdm.files import atomic_write, read_json, sha256_file, write_json
from sgdm.models.pretrained import WEIGHTS
from sgdm.models.unet import UNet


class CheckpointError(ValueError):
    """A checkpoint that cannot be written or does not fit; the message names it and the way out."""


@dataclass
class Counters:
    """What a run has come to, beside its tensors."""

    images: int = 0
    learning_rate_factor: float = 1.0
    """Halved at every roll-back."""
    loss: float | None = None
    """Mean since the checkpoint before."""
    accumulation: int = 1
    """Backward passes a step: another number rounds otherwise."""


def average_folder(checkpoint: Path, decay: float) -> Path:
    return checkpoint / decay_name(decay)


def newest(run: Path) -> Path | None:
    """The last whole checkpoint of a run."""
    return max(_whole(run / "checkpoints"), key=images_of, default=None)


def images_of(checkpoint: Path) -> int:
    return int(checkpoint.name)


def accumulation_of(checkpoint: Path, processes: int) -> int | None:
    """That of the run that wrote it; None if it had another number of processes."""
    facts = read_json(checkpoint / "state.json")
    return facts.get("accumulation") if facts.get("processes") == processes else None


class Saver:
    """Writes checkpoints of a run, in the background. All processes call it alike.

    CheckpointError where one cannot be written, from whichever call comes next. The process that meets it ends, and
    the launcher ends the others; the newest whole checkpoint stays whatever happens here.
    """

    def __init__(self, config: Config, trained_on: dict[str, str | None], ranks: Ranks) -> None:
        self._config, self._trained_on, self._ranks = config, trained_on, ranks
        self._folder = config.run / "checkpoints"
        self._thread: threading.Thread | None = None
        self._failure: CheckpointError | None = None

    def save(self, shards: Shards, averages: Averages, counters: Counters) -> Path:
        """Copies everything to the host and returns; the folder that it is going to be."""
        self.wait()
        partial = self._folder / f".{counters.images}.partial"
        if self._ranks.first:
            for left_behind in self._folder.glob(".*.partial"):  # by a kill
                shutil.rmtree(left_behind, ignore_errors=True)
            try:
                (partial / "state").mkdir(parents=True)
            except OSError as error:
                raise self._cannot(counters.images, error) from error
        self._ranks.wait()
        state = self._gather_state(shards)
        own_averages = {
            name: tensors
            for number, name in enumerate(averages.shards)
            if (tensors := gather(shards, averages.shards[name], number % self._ranks.world_size, self._ranks))
        }
        facts = {
            **dataclasses.asdict(counters),
            "average_steps": averages.steps,
            "averages_stretched_at": averages.stretched_at,
            "optimizer_steps": shards.steps,
            "trained_on": self._trained_on,
            "processes": self._ranks.world_size,
        }
        self._thread = threading.Thread(
            target=self._write, args=(partial, state, own_averages, facts), daemon=True, name="checkpoint"
        )
        self._thread.start()
        return self._folder / str(counters.images)

    def wait(self) -> None:
        """Until what this process writes is on the disk; on the first process, until the checkpoint is whole."""
        if self._thread is not None:
            self._thread.join()
        self.check()

    def check(self) -> None:
        """Raises what has failed so far."""
        if self._failure is not None:
            raise self._failure

    def _gather_state(self, shards: Shards) -> dict[str, Tensor]:
        """Weights and moments that this process writes: each has about as many numbers to write as the others."""
        parts = {"weight": shards.masters, **{name: shards.moments(name) for name in MOMENTS}}
        mine = {}
        for index, owner in enumerate(owners(shards, self._ranks.world_size)):
            for part, tensors in parts.items():
                whole = shards.gather(index, tensors)
                if owner == self._ranks.rank:
                    mine[f"{part}/{shards.names[index]}"] = whole.to("cpu", torch.float32, copy=True).contiguous()
        return mine

    def _write(
        self,
        partial: Path,
        state: dict[str, Tensor],
        own_averages: dict[str, dict[str, Tensor]],
        facts: dict[str, Any],
    ) -> None:
        rank = self._ranks.rank
        try:
            written = [partial / "state" / f"{rank:05}.safetensors"]
            with atomic_write(written[0]) as temporary:
                save_file(state, temporary)
            for name, tensors in own_averages.items():
                make_network(self._config, tensors).save_pretrained(partial / name)
                written += sorted((partial / name).iterdir())
            digests = {str(path.relative_to(partial)): sha256_file(path) for path in written}
            write_json(partial / f"done-{rank:05}.json", digests)
            if self._ranks.first:
                self._finish(partial, facts)
        # A full disk is an OSError, or where safetensors writes an error of its own; memory may be short too. What a
        # thread does not catch would be lost, and the others wait for it.
        except Exception as error:
            if self._ranks.first:
                shutil.rmtree(partial, ignore_errors=True)
            self._failure = self._cannot(facts["images"], error)

    def _finish(self, partial: Path, facts: dict[str, Any]) -> None:
        """Once all processes have written theirs, which needs no message: they share the folder."""
        digests: dict[str, str] = {}
        for rank in range(self._ranks.world_size):
            done = partial / f"done-{rank:05}.json"
            while not done.exists():  # a process that fails ends, and is the end of this one too
                if not partial.exists():
                    return
                time.sleep(0.02)
            digests |= read_json(done)
            done.unlink()
        save_config(self._config, partial / "config.yaml")
        digests["config.yaml"] = sha256_file(partial / "config.yaml")
        write_json(partial / "state.json", {**facts, "files": digests})
        for folder in (*(path for path in partial.iterdir() if path.is_dir()), partial):
            _sync_folder(folder)
        final = self._folder / str(facts["images"])
        _remove(final)  # one that was damaged
        os.replace(partial, final)
        _sync_folder(self._folder)
        with suppress(OSError):  # the checkpoint is whole; what cannot be removed now is tried again
            forget_old(self._config, self._folder)

    def _cannot(self, images: int, error: Exception) -> CheckpointError:
        last = newest(self._config.run)
        kept = f"the last whole one is {last}" if last else "there is no earlier one"
        return CheckpointError(
            f"the checkpoint at {images:,} images could not be written to {self._folder} ({error}); {kept}; "
            "make room or repair the disk and run the same command again"
        )


def owners(shards: Shards, world_size: int) -> list[int]:
    """Which process writes each parameter: runs of them with about equal numbers of values."""
    sizes = [getattr(parameter, "ds_numel", parameter.numel()) for parameter in shards.parameters]
    total, before, found = sum(sizes), 0, []
    for size in sizes:
        found.append(min(before * world_size // total, world_size - 1))
        before += size
    return found


def gather(shards: Shards, tensors: Sequence[Tensor], owner: int, ranks: Ranks) -> dict[str, Tensor]:
    """Whole tensors by name, on the host, of shards laid out as masters: for the process `owner`, {} for the others,
    which must call it too."""
    mine = {}
    for index, name in enumerate(shards.names):
        whole = shards.gather(index, tensors)
        if ranks.rank == owner:
            mine[name] = whole.to("cpu", torch.float32, copy=True).contiguous()
    return mine


def make_network(config: Config, tensors: dict[str, Tensor]) -> UNet:
    """The run's network with these weights."""
    with torch.device("meta"):
        network = UNet(config.network)
    network.load_state_dict(tensors, assign=True)
    return network


def load_newest(
    config: Config, shards: Shards, averages: Averages, trained_on: dict[str, str | None], ranks: Ranks
) -> tuple[Path | None, Counters, list[str]]:
    """Goes on from the newest checkpoint that is not damaged: it, the counters, and what is wrong with newer ones.

    Those become <images>.damaged, which nothing reads: they would count as the newest again."""
    damaged: list[str] = []
    for checkpoint in sorted(_whole(config.run / "checkpoints"), key=images_of, reverse=True):
        reason = damage(checkpoint, ranks)
        if reason is None:
            check(checkpoint, config, trained_on)
            if ranks.first and damaged:
                _set_aside(config.run / "checkpoints", images_of(checkpoint))
            ranks.wait()
            return checkpoint, _load(checkpoint, shards, averages), damaged
        damaged.append(f"{checkpoint} is damaged ({reason})")
    if damaged:
        raise CheckpointError(
            f"every checkpoint in {config.run / 'checkpoints'} is damaged, the newest one: {damaged[0]}; move them "
            "away to begin anew, or choose another --run folder"
        )
    return None, Counters(), []


def damage(checkpoint: Path, ranks: Ranks) -> str | None:
    """What is wrong with a checkpoint's files, None if nothing is. The processes share the reading."""
    reason = _damage(checkpoint, ranks)
    if ranks.world_size == 1:
        return reason
    reasons: list[str | None] = [None] * ranks.world_size
    torch.distributed.all_gather_object(reasons, reason)
    return next((found for found in reasons if found), None)


def _damage(checkpoint: Path, ranks: Ranks) -> str | None:
    """In this process's share of the files."""
    try:
        files = read_json(checkpoint / "state.json").get("files")
        if files is None:
            return "it is of an earlier version of this program"
        for name, digest in list(files.items())[ranks.rank :: ranks.world_size]:
            if sha256_file(checkpoint / name) != digest:
                return f"{name} is not as it was written"
    except (OSError, ValueError) as error:
        return str(error)
    return None


def _set_aside(folder: Path, images: int) -> None:
    for checkpoint in _whole(folder):
        if images_of(checkpoint) > images:
            aside = checkpoint.with_name(f"{checkpoint.name}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(checkpoint, aside)


def _load(checkpoint: Path, shards: Shards, averages: Averages) -> Counters:
    facts = read_json(checkpoint / "state.json")
    files = [safe_open(path, "pt") for path in sorted((checkpoint / "state").glob("*.safetensors"))]
    file_of = {name: file for file in files for name in file.keys()}  # noqa: SIM118
    moments = {name: shards.moments(name) for name in MOMENTS}
    kept = {name: (tensors, safe_open(checkpoint / name / WEIGHTS, "pt")) for name, tensors in averages.shards.items()}
    device = shards.device
    for index, name in enumerate(shards.names):

        def read(file: Any, key: str) -> Tensor:
            return file.get_tensor(key).to(device)

        shards.set_weight(index, read(file_of[f"weight/{name}"], f"weight/{name}"))
        for moment, tensors in moments.items():
            shards.scatter(index, read(file_of[f"{moment}/{name}"], f"{moment}/{name}"), tensors)
        for tensors, file in kept.values():
            shards.scatter(index, read(file, name), tensors)
    shards.steps = facts["optimizer_steps"]
    averages.steps, averages.stretched_at = facts["average_steps"], facts["averages_stretched_at"]
    return Counters(**{field.name: facts[field.name] for field in dataclasses.fields(Counters)})


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
    for field in ("ema_decays", "ema_lengths"):
        kept, asked = getattr(trained.training, field), getattr(config.training, field)
        if not set(asked) <= set(kept):
            raise CheckpointError(f"{checkpoint} has averages of {field} {kept}, not of {asked}: {way_out}")
    found_on = read_json(checkpoint / "state.json")["trained_on"]
    for part, digest in trained_on.items():
        if found_on.get(part) != digest:
            found = found_on.get(part)
            raise CheckpointError(f"{checkpoint} was trained on {part} {found}, these are {digest}: {way_out}")


def forget_old(config: Config, folder: Path) -> None:
    """Removes checkpoints that no rule of the configuration keeps: the newest, one an interval, the best."""
    training, found = config.training, sorted(_whole(folder), key=images_of)
    kept = found[-training.keep_checkpoints :]
    if training.keep_every_images is not None:
        first = {}  # at or after each multiple
        for path in reversed(found):
            first[images_of(path) // training.keep_every_images] = path
        kept += [path for number, path in first.items() if number]
    if training.keep_best:
        losses = {path: read_json(path / "state.json")["loss"] for path in found}
        kept.append(min(found, key=lambda path: float("inf") if losses[path] is None else losses[path]))
    for path in found:
        if path not in kept:
            _remove(path)


def _differences(found: Any, wanted: Any) -> str:
    return ", ".join(
        f"{field.name} is {getattr(found, field.name)} where {getattr(wanted, field.name)} is expected"
        for field in dataclasses.fields(found)
        if getattr(found, field.name) != getattr(wanted, field.name)
    )


def _whole(folder: Path) -> list[Path]:
    return [path for path in folder.glob("*") if path.name.isdigit() and (path / "state.json").is_file()]


def _remove(checkpoint: Path) -> None:
    """Under another name first: killed half-way, it must not look whole."""
    if checkpoint.exists():
        doomed = checkpoint.with_name(f".{checkpoint.name}.removed.partial")
        os.replace(checkpoint, doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
