"""What the annotation sets of a data set have in common: arrays in a folder, whole or absent.

manifest.json   written last, with the SHA-256 of every array: without it there is no set
NAME.npy        an array
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from sgdm.files import read_json, save_array, sha256_file, write_json

MANIFEST = "manifest.json"
DIGESTS = "sha256"

Manifest = TypeVar("Manifest")
"""A dataclass with the entry data_digest, that of the images (DataManifest.digest)."""


class AnnotationError(ValueError):
    """An annotation set is missing, damaged, or belongs to other data."""


def save_set(folder: Path, manifest: Any, arrays: Mapping[str, Sequence[np.ndarray]]) -> None:
    """Writes the arrays, each given in one part or more, and, last, the manifest. Killed at any moment, it leaves a
    folder without a manifest."""
    (folder / MANIFEST).unlink(missing_ok=True)
    for name, parts in arrays.items():
        save_array(folder / f"{name}.npy", *parts)
    digests = {name: sha256_file(folder / f"{name}.npy") for name in arrays}
    write_json(folder / MANIFEST, {**asdict(manifest), DIGESTS: digests})


def load_set(folder: Path, kind: type[Manifest], data_digest: str) -> tuple[Manifest, dict[str, np.ndarray]]:
    """A set's manifest and its arrays, memory-mapped. AnnotationError where something of it is missing, has changed
    since it was written, or is of other images than those of `data_digest`."""
    found = read_manifest(folder, kind)
    digests: dict[str, str] = found.pop(DIGESTS)
    if found["data_digest"] != data_digest:
        raise AnnotationError(
            f"{folder} annotates the data set {found['data_digest']}, but this one is {data_digest}: "
            "annotate it again, or point at the data set that the annotation was made for"
        )
    for name, digest in digests.items():
        path = folder / f"{name}.npy"
        if not path.is_file() or sha256_file(path) != digest:
            raise AnnotationError(f"{path} is missing, or not what was written there. Annotate again")
    return kind(**found), {name: np.load(folder / f"{name}.npy", "r", allow_pickle=False) for name in digests}


def read_manifest(folder: Path, kind: type) -> dict[str, Any]:
    """The entries of a set's manifest, DIGESTS among them. AnnotationError where they are not those of `kind`."""
    path = folder / MANIFEST
    if not path.is_file():
        raise AnnotationError(f"{path} is missing: there is no whole annotation set there. Annotate first")
    found = read_json(path)
    names = {field.name for field in fields(kind)} | {DIGESTS}
    if not isinstance(found, dict) or found.keys() != names or not isinstance(found[DIGESTS], dict):
        raise AnnotationError(f"{path} is damaged or of another version: it must hold {sorted(names)}. Annotate again")
    return found
