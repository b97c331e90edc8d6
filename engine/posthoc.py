"""`sgdm ema`: averages of the weights whose length is chosen after training, from the snapshots of a run.

posthoc/<images>-length-<sigma_rel>/ in the run folder is a `UNet.save_pretrained` folder; sampling.ema_length draws
with it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from engine import snapshots
from engine.config import Config
from engine.console import run_program
from engine.telemetry import say
from sgdm.averaging import LONGEST, Profile, nearest_combination
from sgdm.models.pretrained import CONFIG

ROUGH = 0.05
"""An error of the profile that is worth a word."""


def run(config: Config) -> None:
    """Makes the averages of posthoc.lengths, and says of each how near it is to what was asked for.

    ValueError where no length is given, where there are no snapshots, and for an end where none was taken."""
    if not config.posthoc.lengths:
        raise ValueError("posthoc.lengths is empty: give the lengths of the averages to make, such as --length 0.05")
    images, found = end(config), snapshots.find(config.run)
    ends = sorted({snapshot.images for snapshot in found})
    if images not in ends:
        raise ValueError(f"{config.run} has no snapshot at {images} images (posthoc.images): give one of {ends}")
    before = [snapshot for snapshot in found if snapshot.images <= images]
    for length in config.posthoc.lengths:
        _make(config, Profile(length, images), before)


def make_missing(config: Config, lengths: Iterable[float]) -> None:
    """Makes those averages of these lengths that are not there yet, of the run's snapshots.

    ValueError for a length that no average has, naming the decays and lengths that there are, and without snapshots."""
    for length in lengths:
        if not snapshots.find(config.run) or not 0 < length < LONGEST:
            raise ValueError(_no_average(config, length))
        images = end(config)
        wanted = Profile(length, images)
        if not (snapshots.combined_folder_of(config.run, wanted) / CONFIG).is_file():
            _make(config, wanted, [snapshot for snapshot in snapshots.find(config.run) if snapshot.images <= images])


def _no_average(config: Config, length: float) -> str:
    decays = sorted(config.training.ema_decays, key=lambda decay: abs(decay - length))
    there = f"{config.run} has no average {length:g}. It has the decays {', '.join(f'{decay:g}' for decay in decays)}"
    stored = sorted({snapshot.length for snapshot in snapshots.find(config.run)}, key=lambda other: abs(other - length))
    if not stored:
        return f"{there}, nearest first, and no snapshots to make other lengths of (train with --training.ema-lengths)"
    lengths = ", ".join(f"{other:g}" for other in stored)
    return (
        f"{there}, and snapshots of the lengths {lengths}, nearest first, of which lengths up to {LONGEST:.3g} are made"
    )


def find(config: Config, length: float) -> Path:
    """The average of this length. ValueError, naming those that are there, where it is not."""
    wanted = Profile(length, end(config))
    folder = snapshots.combined_folder_of(config.run, wanted)
    if not (folder / CONFIG).is_file():
        there = ", ".join(sorted(path.parent.name for path in folder.parent.glob(f"*/{CONFIG}"))) or "none"
        raise ValueError(
            f"{folder} is missing (there: {there}): make it with "
            f"sgdm ema --config {config.run / 'config.yaml'} --length {wanted.length}{_end_option(config)}"
        )
    return folder


def _make(config: Config, wanted: Profile, stored: list[Profile]) -> None:
    weights, error = nearest_combination(wanted, stored)
    parts = [snapshots.folder_of(config.run, snapshot) for snapshot in stored]
    folder = snapshots.combined_folder_of(config.run, wanted)
    snapshots.combine(dict(zip(parts, weights.tolist(), strict=True)), config.network, folder)
    lengths = " and ".join(f"{length}" for length in sorted({snapshot.length for snapshot in stored}))
    say(
        f"ema: length {wanted.length} at {wanted.images:,} images, of {len(stored)} snapshots of length {lengths}, "
        f"relative error of its profile {error:.2g} -> {folder}"
    )
    if error > ROUGH:
        say(
            f"ema: an error of {error:.0%} is much: lengths between those of the snapshots, or more snapshots "
            "(training.snapshot_images), bring it down"
        )
    say(
        f"ema: draw with it: sgdm sample --config {config.run / 'config.yaml'} "
        f"--sampling.ema-length {wanted.length}{_end_option(config)}"
    )


def end(config: Config) -> int:
    """Of averages, in images seen: posthoc.images, or the last snapshot."""
    if config.posthoc.images is not None:
        return config.posthoc.images
    found = snapshots.find(config.run)
    if not found:
        raise ValueError(
            f"{config.run} has no snapshots: train with --training.ema-lengths 0.05 0.1 and "
            "--training.snapshot-images of about a sixteenth of the training"
        )
    return found[-1].images


def _end_option(config: Config) -> str:
    return "" if config.posthoc.images is None else f" --posthoc.images {config.posthoc.images}"


def main() -> None:
    run_program("ema", run)


if __name__ == "__main__":
    main()
