"""Images from a source into train.beton and val.beton (FFCV), each with a manifest beside it.

Where the source knows what is in its images, its boxes and segments become the layout sets train.truth-boxes/ and
train.truth-segments/ (and val.*), row by row as the images. They are for comparison alone: truth never guides training.
"""

from __future__ import annotations

import shutil
from importlib.metadata import version
from pathlib import Path

import numpy as np

from engine import telemetry
from engine.config import Config
from engine.console import run_program
from sgdm.annotate.layout import Kind, LayoutManifest, load_layout, save_layout
from sgdm.annotate.sets import AnnotationError
from sgdm.data.beton import is_prepared, manifest_path, read_manifest, stored_rows, unreadable_path, write_beton
from sgdm.data.opening import open_source
from sgdm.data.sources import MissingSplit, Source, Split
from sgdm.data.truth import AnnotatedSource, stored_boxes, stored_segments
from sgdm.ragged import Boxes, RunLengths

KINDS: tuple[Kind, ...] = ("boxes", "segments")


def run(config: Config) -> None:
    data = config.data
    sources: dict[Split, Source] = {"train": open_source(data.source, "train")}
    try:
        sources["val"] = open_source(data.source, "val")
    except MissingSplit:
        telemetry.say("prepare: there is no val split; metrics compare with training images")
        stale = data.folder / "val.beton"  # of another source
        for path in (manifest_path(stale), stale):
            path.unlink(missing_ok=True)
        forget_truth(stale)
    paths = {split: data.folder / f"{split}.beton" for split in sources}
    missing = [split for split, source in sources.items() if not is_current(source, paths[split], config, split)]
    untold = [split for split, source in sources.items() if split in missing or not is_told(source, paths[split])]
    if not untold:
        telemetry.skip("prepare", data.folder)
        return
    total = sum(len(sources[split]) for split in missing)
    with telemetry.stage(config, "prepare") as record:
        with telemetry.progress("prepare", total, visible=total > 0) as advance:
            for split in missing:
                source, path = sources[split], paths[split]
                manifest = write_beton(source, path, data.image_size, split=split, strict=data.strict, advance=advance)
                record.images += manifest.count
                if manifest.unreadable:
                    telemetry.say(
                        f"prepare: {manifest.unreadable:,} of {len(source):,} {split} images cannot be read and are "
                        f"left out, listed in {unreadable_path(path)}"
                    )
        for split in untold:
            write_truth(sources[split], paths[split])
        record.result = str(data.folder)


def is_current(source: Source, path: Path, config: Config, split: Split) -> bool:
    """Whether the stage would write what is there; a set with images left out is none for --strict."""
    return is_prepared(source, path, config.data.image_size, split=split) and not (
        config.data.strict and read_manifest(path).unreadable
    )


def truth_folder(path: Path, kind: Kind) -> Path:
    """Where the truth of the .beton file `path` is."""
    return path.with_suffix(f".truth-{kind}")


def is_told(source: Source, path: Path) -> bool:
    """Whether write_truth would write what is there beside the .beton file `path`, which is current."""
    folders = {kind: truth_folder(path, kind) for kind in KINDS}
    if not isinstance(source, AnnotatedSource):
        return not any(folder.exists() for folder in folders.values())
    data = read_manifest(path)
    try:
        found = [load_layout(folder, data.digest).manifest for folder in folders.values()]
    except AnnotationError:
        return False
    return all(manifest.parameters == {"fingerprint": data.fingerprint} for manifest in found)


def write_truth(source: Source, path: Path) -> None:
    """Writes the truth of a source that has it beside its .beton file `path`, and forgets what else was there."""
    forget_truth(path)
    if not isinstance(source, AnnotatedSource):
        return
    data = read_manifest(path)
    truth, rows = source.truth(), stored_rows(source, path)
    try:
        objects: dict[Kind, Boxes | RunLengths] = {
            "boxes": stored_boxes(truth, rows),
            "segments": stored_segments(truth, rows, data.image_size),
        }
    except ValueError as error:
        raise ValueError(f"an annotation of {source.name} ({data.split}) cannot be drawn: {error}") from error
    for kind in KINDS:
        found = objects[kind]
        manifest = LayoutManifest(
            data_digest=data.digest,
            kind=kind,
            method="truth",
            weights_digest="",
            class_names=list(truth.class_names),
            seed=0,
            parameters={"fingerprint": data.fingerprint},
            versions={"numpy": version("numpy")},
            report={
                "objects": len(found.class_ids),
                "images": found.num_images,
                "images_with_objects": int(np.count_nonzero(np.diff(found.image_offsets))),
            },
        )
        save_layout(truth_folder(path, kind), manifest, found)
        telemetry.say(f"prepare: {len(found.class_ids):,} true {kind} -> {truth_folder(path, kind)}")


def forget_truth(path: Path) -> None:
    for kind in KINDS:
        shutil.rmtree(truth_folder(path, kind), ignore_errors=True)


def main() -> None:
    run_program("prepare", run)


if __name__ == "__main__":
    main()
