"""What has been made of numbered images so far: files of batches, each whole or absent.

A kill costs the batch at hand, and another number of processes or another batch size goes on from what is there."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sgdm.files import atomic_write, read_json, write_json

IDENTITY = "identity.json"
NUMBERS = "numbers"


class Batches:
    """Arrays of the images 0 .. count - 1 in a folder, which are what `key` says. One process calls `begin` first."""

    def __init__(self, folder: Path, count: int, key: str) -> None:
        self.folder, self.count, self._identity = folder, count, {"key": key, "count": count}

    def begin(self) -> None:
        """Deletes what is there of anything else, and files that are damaged."""
        path = self.folder / IDENTITY
        if not path.is_file() or read_json(path) != self._identity:
            shutil.rmtree(self.folder, ignore_errors=True)
            write_json(path, self._identity)
        for file in self.files():
            try:
                self.load(file)
            except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
                file.unlink()

    def files(self) -> list[Path]:
        """In the order of their first numbers."""
        return sorted(self.folder.glob("[0-9]*.npz"))

    def load(self, file: Path) -> dict[str, NDArray[Any]]:
        """The arrays of a batch, `numbers` among them."""
        with np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)

    def missing(self) -> NDArray[np.int64]:
        """The numbers that no file holds yet, ascending."""
        absent = np.ones(self.count, bool)
        for file in self.files():
            with np.load(file, allow_pickle=False) as arrays:
                absent[arrays[NUMBERS]] = False
        return np.flatnonzero(absent)

    def write(self, numbers: NDArray[np.int64], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Keeps arrays, a row for each of these numbers. One that has fewer rows is of the first of them."""
        with atomic_write(self.folder / f"{numbers[0]:09}.npz") as temporary, temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **{NUMBERS: numbers}, **arrays)

    def batches(self, *names: str) -> Iterator[list[NDArray[Any]]]:
        """The numbers and these arrays, file by file."""
        for file in self.files():
            with np.load(file, allow_pickle=False) as arrays:
                yield [arrays[name] for name in (NUMBERS, *names)]

    def gather(self, name: str, first: int | None = None) -> NDArray[Any]:
        """An array of all images in the order of their numbers, or of the `first` so many of them.

        ValueError where one is missing."""
        count = self.count if first is None else min(first, self.count)
        whole: NDArray[Any] | None = None
        filled = np.zeros(count, bool)
        for numbers, part in self.batches(name):
            numbers = numbers[: len(part)]
            inside = numbers < count
            if whole is None:
                whole = np.empty((count, *part.shape[1:]), part.dtype)
            whole[numbers[inside]] = part[inside]
            filled[numbers[inside]] = True
        if whole is None or not filled.all():
            raise ValueError(
                f"{self.folder} has {name} of {filled.sum()} of {count} images: run the same command again"
            )
        return whole

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def share(
    missing: NDArray[np.int64], batch_size: int, rank: int, world_size: int
) -> Iterator[tuple[NDArray[np.int64], int]]:
    """A process's batches of the missing numbers, each with how many images all processes have in this turn: dealt in
    turns, so that none has two batches more than another."""
    for start in range(0, len(missing), world_size * batch_size):
        turn = missing[start : start + world_size * batch_size]
        own = turn[rank * batch_size : (rank + 1) * batch_size]
        if len(own):
            yield own, len(turn)
