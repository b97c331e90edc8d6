"""Arrays of all images of a data set on disk, in shards of so many images, each whole or absent.

identity.json           what decides the content: shards of anything else are thrown away
shard-00000.json        rows and SHA-256 of the shard's files, written last: without it there is no shard
shard-00000.NAME.npy    an array of the shard

Several processes may write different shards at once. One that is killed loses the shard that it was at.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sgdm.annotate.sets import AnnotationError
from sgdm.files import fingerprint, read_json, save_array, sha256_file, write_json

IDENTITY = "identity.json"


class Shards:
    """The shards in a folder; `begin` comes first."""

    def __init__(self, folder: Path, count: int, shard_images: int) -> None:
        """`count` images, `shard_images` in each shard but the last, which may have fewer."""
        self.folder = folder
        self.count = count
        self.shard_images = shard_images
        self._verified: set[int] = set()

    def __len__(self) -> int:
        """How many shards make up the whole."""
        return -(-self.count // self.shard_images)

    def begin(self, identity: Mapping[str, Any]) -> None:
        """Keeps the shards of this identity (as JSON can hold it) that are there already, and deletes any others."""
        whole = {**identity, "count": self.count, "shard_images": self.shard_images}
        path = self.folder / IDENTITY
        if path.is_file() and fingerprint(read_json(path)) == fingerprint(whole):
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        write_json(path, whole)

    def rows(self, number: int) -> range:
        """The images of a shard."""
        return range(number * self.shard_images, min((number + 1) * self.shard_images, self.count))

    def is_whole(self, number: int) -> bool:
        return self._record(number).is_file()

    def save(self, number: int, arrays: Mapping[str, np.ndarray]) -> None:
        digests = {}
        for name, array in arrays.items():
            save_array(self._file(number, name), array)
            digests[name] = sha256_file(self._file(number, name))
        write_json(self._record(number), {"images": len(self.rows(number)), "sha256": digests})

    def digest(self) -> str:
        """One digest of the content of all shards. AnnotationError where one is missing."""
        return fingerprint([self._read_record(number)["sha256"] for number in range(len(self))])

    def load(self, number: int) -> dict[str, np.ndarray]:
        """The arrays of a shard, memory-mapped, checked against their digests when they are first asked for."""
        digests: dict[str, str] = self._read_record(number)["sha256"]
        if number not in self._verified:
            for name, digest in digests.items():
                path = self._file(number, name)
                if not path.is_file() or sha256_file(path) != digest:
                    raise AnnotationError(
                        f"{path} is missing or damaged: delete {self._record(number)} and annotate again"
                    )
            self._verified.add(number)
        return {name: np.load(self._file(number, name), mmap_mode="r", allow_pickle=False) for name in digests}

    def _read_record(self, number: int) -> dict[str, Any]:
        path = self._record(number)
        record = read_json(path) if path.is_file() else None
        if not isinstance(record, dict) or record.get("images") != len(self.rows(number)):
            raise AnnotationError(f"{path} is missing or damaged: delete it and annotate again")
        return record

    def _record(self, number: int) -> Path:
        return self.folder / f"shard-{number:05}.json"

    def _file(self, number: int, name: str) -> Path:
        return self.folder / f"shard-{number:05}.{name}.npy"
