"""Images from a source into train.beton and val.beton (FFCV), each with a manifest beside it."""

from __future__ import annotations

from pathlib import Path

from engine import telemetry
from engine.config import Config
from engine.console import run_program
from sgdm.data.beton import is_prepared, manifest_path, read_manifest, unreadable_path, write_beton
from sgdm.data.opening import open_source
from sgdm.data.sources import MissingSplit, Source, Split


def run(config: Config) -> None:
    data = config.data
    sources: dict[Split, Source] = {"train": open_source(data.source, "train")}
    try:
        sources["val"] = open_source(data.source, "val")
    except MissingSplit:
        telemetry.say("prepare: there is no val split; metrics compare with training images")
        for stale in (manifest_path(data.folder / "val.beton"), data.folder / "val.beton"):
            stale.unlink(missing_ok=True)  # of another source
    missing = {
        split: source
        for split, source in sources.items()
        if not is_current(source, data.folder / f"{split}.beton", config, split)
    }
    if not missing:
        telemetry.skip("prepare", data.folder)
        return
    total = sum(len(source) for source in missing.values())
    with telemetry.stage(config, "prepare") as record, telemetry.progress("prepare", total) as advance:
        for split, source in missing.items():
            path = data.folder / f"{split}.beton"
            manifest = write_beton(source, path, data.image_size, split=split, strict=data.strict, advance=advance)
            record.images += manifest.count
            if manifest.unreadable:
                telemetry.say(
                    f"prepare: {manifest.unreadable:,} of {len(source):,} {split} images cannot be read and are "
                    f"left out, listed in {unreadable_path(path)}"
                )
        record.result = str(data.folder)


def is_current(source: Source, path: Path, config: Config, split: Split) -> bool:
    """Whether the stage would write what is there; a set with images left out is none for --strict."""
    return is_prepared(source, path, config.data.image_size, split=split) and not (
        config.data.strict and read_manifest(path).unreadable
    )


def main() -> None:
    run_program("prepare", run)


if __name__ == "__main__":
    main()
