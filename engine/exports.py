"""Samples on disk in the format that a user asks for: whole or absent, and found again by their key.

    npz         <stem>.npz: key, image uint8 [n, H, W, 3], cluster int64 [n], -1 for none; with layouts, row and layout
    png         <stem>/000000.png ..., clusters.csv
    webdataset  <stem>/000000.tar ..., of samples NNNNNNNN.png and NNNNNNNN.cls, the cluster as text; clusters.csv
    beton       <stem>.beton and its manifest: a data set to train on, with the cluster as its label

Equal samples give equal bytes, however they were divided into batches. Files are mapped or written image by image, so
none of the formats needs room for all of them. Images of a .beton above sgdm.data.beton.LARGEST_RAW are JPEG.
"""

from __future__ import annotations

import csv
import functools
import io
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from engine.batches import Batches
from sgdm.data.beton import check_beton, manifest_path, write_beton
from sgdm.data.loader import Loader
from sgdm.data.sources import Sample
from sgdm.files import atomic_write, read_json, write_json

FURTHER = ("cluster", "row", "layout")
"""What is told of an image beside its pixels. What else batches hold, features of a network, is not of the samples."""
IDENTITY = "samples.json"
CLUSTERS = "clusters.csv"
OFFSETS = "offsets.npy"
SHARD = 10_000
"""Images of a .tar."""
THREADS = min(8, os.cpu_count() or 1)
LOADED = 64
"""Images that FFCV decodes at a time."""


def export(format: str, stem: Path, batches: Batches, key: str) -> Path:
    """Writes the samples of `batches`, in place of what is there; returns the file or folder.

    By one process. ValueError where a sample is missing.
    """
    path = _path(format, stem)
    FORMATS[format].write(_Samples(batches, key), path)
    return path


def find(format: str, stem: Path, key: str) -> Path | None:
    """The file or folder that `export` has written of this key; None where there is none, or a damaged one."""
    path = _path(format, stem)
    try:
        return path if FORMATS[format].key(path) == key else None
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        return None


def path_of(format: str, stem: Path) -> Path | None:
    """The file or folder that is there, whatever its key and whether or not it is whole; None where there is none.

    A folder of another format is none, nor is what a kill leaves, without its samples.json or manifest.
    """
    path = _path(format, stem)
    return path if FORMATS[format].is_there(path) else None


def clusters_of(format: str, path: Path) -> NDArray[np.int64]:
    """The cluster ids of all samples, int64 [n], -1 for none, of what `export` has written. No image is read."""
    return FORMATS[format].clusters(path)


def images_of(format: str, path: Path, numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The images of these numbers, uint8 [n, H, W, 3], of what `export` has written. No other is read."""
    return FORMATS[format].read(path, numbers)


def _path(format: str, stem: Path) -> Path:
    return stem.with_name(stem.name + FORMATS[format].suffix)  # a stem may have a dot: guidance-1.5


class _Samples:
    """What batches hold, by number, whichever file it is in; a sgdm.data.sources.Source too."""

    name = "samples"

    def __init__(self, batches: Batches, key: str) -> None:
        self.key = key
        self.cluster: NDArray[np.int64] = batches.gather("cluster")
        files = batches.files()
        with np.load(files[0], allow_pickle=False) as first:
            self.further = {name: batches.gather(name) for name in FURTHER if name in first}
        # A thread of write_beton goes through one file at a time.
        self._map = functools.lru_cache(THREADS)(lambda file: _map_images(files[file]))
        self._file, self._row = np.full((2, len(self)), -1)
        for file, (numbers,) in enumerate(batches.batches()):
            numbers = numbers[: len(self._map(file))]
            self._file[numbers], self._row[numbers] = file, np.arange(len(numbers))
        if (self._file < 0).any():
            raise ValueError(
                f"{batches.folder} has image of {(self._file >= 0).sum()} of {len(self)} images: "
                "run the same command again"
            )
        self.identifiers: Sequence[str] = [f"{number:08}" for number in range(len(self))]
        self.label_names: Sequence[str] = [str(cluster) for cluster in range(self.cluster.max() + 1)]

    def __len__(self) -> int:
        return len(self.cluster)

    def images(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
        """All images with their numbers, ascending; at most those of a file at a time."""
        ends = np.flatnonzero(np.diff(self._file)) + 1
        for numbers in np.split(np.arange(len(self)), ends):
            yield numbers, self._map(self._file[numbers[0]])[self._row[numbers]]

    def read(self, i: int) -> Sample:
        return Sample(self._map(self._file[i])[self._row[i]], int(self.cluster[i]))

    def fingerprint(self) -> str:
        return self.key


def _map_images(path: Path) -> NDArray[np.uint8]:
    """`image` of an uncompressed .npz file, mapped: numpy itself maps .npy files only."""
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        member = archive.getinfo("image.npy")
        if member.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{path} is compressed: draw its samples again")
        file.seek(member.header_offset + 26)  # lengths of the name and of what is extra, then both, then the array
        file.seek(sum(np.frombuffer(file.read(4), "<u2").tolist()), os.SEEK_CUR)
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        return np.memmap(file, dtype, "r", file.tell(), shape)


def _write_npz(samples: _Samples, path: Path) -> None:
    shape = (len(samples), *samples.read(0).image.shape)
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    with atomic_write(path) as temporary:
        np.savez(temporary, allow_pickle=False, key=np.array(samples.key), **samples.further)
        with zipfile.ZipFile(temporary, "a") as archive, archive.open("image.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(file, header)
            for _, images in samples.images():
                file.write(images.tobytes())


def _npz_key(path: Path) -> str:
    with np.load(path, allow_pickle=False) as file:
        return str(file["key"])


def _npz_clusters(path: Path) -> NDArray[np.int64]:
    with np.load(path, allow_pickle=False) as file:
        cluster: NDArray[np.int64] = file["cluster"]
    count = len(_map_images(path))
    if cluster.shape != (count,) or cluster.dtype.kind != "i":
        raise ValueError(f"cluster is {cluster.dtype} {cluster.shape} for {count} images")
    return cluster


def _read_npz(path: Path, numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
    return _map_images(path)[numbers]


@contextmanager
def _whole_folder(path: Path, format: str, samples: _Samples) -> Iterator[Path]:
    """Yields a temporary folder beside `path`, which becomes `path` on success."""
    temporary = path.with_name(f".{path.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)  # what a kill has left
    temporary.mkdir(parents=True)
    try:
        yield temporary
        with (temporary / CLUSTERS).open("w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(["number", "cluster"])
            rows.writerows(enumerate(samples.cluster.tolist()))
        write_json(temporary / IDENTITY, {"format": format, "key": samples.key, "count": len(samples)})
        os.sync()  # of so many small files at once
        if path.exists():
            (path / IDENTITY).unlink(missing_ok=True)  # first: what is half deleted is not found
            shutil.rmtree(path)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _folder_key(format: str, path: Path) -> str | None:
    identity = read_json(path / IDENTITY)
    return identity["key"] if identity["format"] == format else None


def _is_folder(format: str, path: Path) -> bool:
    return (path / IDENTITY).exists() and _folder_key(format, path) is not None


def _folder_clusters(path: Path) -> NDArray[np.int64]:
    count = read_json(path / IDENTITY)["count"]
    lines = (path / CLUSTERS).read_text(encoding="utf-8").splitlines()[1:]
    if len(lines) != count:
        raise ValueError(f"{CLUSTERS} is of {len(lines)} images, not {count}")
    numbers, clusters = np.array([line.split(",") for line in lines], np.int64).T
    if (numbers != np.arange(count)).any():
        raise ValueError(f"{CLUSTERS} has not the numbers 0 to {count - 1}")
    return clusters


def _encoded(samples: _Samples) -> Iterator[tuple[int, bytes]]:
    """Numbers and PNG files of all images, ascending. Pillow lets other threads run while it compresses."""

    def encode(image: NDArray[np.uint8]) -> bytes:
        file = io.BytesIO()
        Image.fromarray(image).save(file, format="png")
        return file.getvalue()

    with ThreadPoolExecutor(THREADS) as pool:
        for numbers, images in samples.images():
            yield from zip(numbers.tolist(), pool.map(encode, images), strict=True)


def _decode(data: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


def _png_name(number: int, count: int) -> str:
    return f"{number:0{max(6, len(str(count - 1)))}}.png"


def _write_png(samples: _Samples, path: Path) -> None:
    with _whole_folder(path, "png", samples) as folder:
        for number, data in _encoded(samples):
            (folder / _png_name(number, len(samples))).write_bytes(data)


def _read_png(path: Path, numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
    count = read_json(path / IDENTITY)["count"]
    return np.stack([_decode((path / _png_name(number, count)).read_bytes()) for number in numbers.tolist()])


def _write_webdataset(samples: _Samples, path: Path) -> None:
    """A sample is the files of a shard, one after another, whose names are the same up to the dot."""
    places = np.empty((len(samples), 2), np.int64)  # of the PNG file in its shard: begin and size, for images_of
    encoded = _encoded(samples)
    with _whole_folder(path, "webdataset", samples) as folder:
        for start in range(0, len(samples), SHARD):
            with (
                _shard(folder, start).open("wb") as file,
                tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as shard,
            ):
                for _ in range(start, min(start + SHARD, len(samples))):
                    number, image = next(encoded)
                    places[number] = file.tell() + tarfile.BLOCKSIZE, len(image)
                    for suffix, data in (("png", image), ("cls", str(samples.cluster[number]).encode())):
                        member = tarfile.TarInfo(f"{number:08}.{suffix}")  # of no owner and of time 0
                        member.size = len(data)
                        shard.addfile(member, io.BytesIO(data))
        np.save(folder / OFFSETS, places, allow_pickle=False)


def _shard(folder: Path, number: int) -> Path:
    return folder / f"{number // SHARD:06}.tar"


def _read_webdataset(path: Path, numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
    places = np.load(path / OFFSETS, mmap_mode="r", allow_pickle=False)
    images = []
    for number in numbers.tolist():
        begin, size = places[number].tolist()
        with _shard(path, number).open("rb") as file:
            file.seek(begin)
            images.append(_decode(file.read(size)))
    return np.stack(images)


def _write_beton(samples: _Samples, path: Path) -> None:
    write_beton(samples, path, len(samples.read(0).image), split="train", workers=THREADS)


def _beton_key(path: Path) -> str:
    return check_beton(path).fingerprint


@functools.lru_cache(1)
def _open_loader(path: Path, written: int) -> Loader:
    """Opened once for all batches, as FFCV compiles anew each time. `written`: when, in ns, to tell files apart."""
    return Loader(path, batch_size=LOADED, device="cpu", seed=0, threads=THREADS)


def _loader(path: Path) -> Loader:
    return _open_loader(path, path.stat().st_mtime_ns)


def _is_beton(path: Path) -> bool:
    return manifest_path(path).is_file()


def _beton_clusters(path: Path) -> NDArray[np.int64]:
    return _loader(path).labels


def _read_beton(path: Path, numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
    return torch.cat([batch.image for batch in _loader(path).select(numbers)]).permute(0, 2, 3, 1).numpy()


class _Format(NamedTuple):
    suffix: str
    write: Callable[[_Samples, Path], None]
    key: Callable[[Path], Any]
    """Of what is there, if it is whole; else an error, or None."""
    is_there: Callable[[Path], bool]
    clusters: Callable[[Path], NDArray[np.int64]]
    read: Callable[[Path, NDArray[np.int64]], NDArray[np.uint8]]


FORMATS = {
    "npz": _Format(".npz", _write_npz, _npz_key, Path.is_file, _npz_clusters, _read_npz),
    "png": _Format(
        "", _write_png, partial(_folder_key, "png"), partial(_is_folder, "png"), _folder_clusters, _read_png
    ),
    "webdataset": _Format(
        "",
        _write_webdataset,
        partial(_folder_key, "webdataset"),
        partial(_is_folder, "webdataset"),
        _folder_clusters,
        _read_webdataset,
    ),
    "beton": _Format(".beton", _write_beton, _beton_key, _is_beton, _beton_clusters, _read_beton),
}
