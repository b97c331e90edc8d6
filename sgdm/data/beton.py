"""A prepared data set: train.beton in FFCV's format, and its manifest train.json beside it.

An image has the fields `image` (RGB, the same square size for all, raw up to 96 pixels and JPEG above),
`index` (its row, 0 .. count-1, by which annotations are looked up) and `label` (-1 where there is none).

The file is written here, with FFCV's types, and not by its DatasetWriter: that one must know the number of
readable images before it starts, waits for ever when one of its processes fails, and holds its table in
shared memory, of which a container may have 64 MB.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from ffcv import types as ffcv_types
from ffcv.fields import IntField, RGBImageField
from PIL import Image

from sgdm.data.sources import Source, UnreadableImage
from sgdm.files import atomic_write, read_json, write_json
from sgdm.progress import Advance, ignore

CROP_RULE = "centre crop, then antialiased resize"
LARGEST_RAW = 96  # pixels; above it, JPEG takes a fraction of the space and still decodes fast enough
LARGEST_IMAGE = 2048  # pixels; an image must fit in a page
JPEG_QUALITY = 95
PAGE_BYTES = 8 << 20  # FFCV reads whole pages where it does not map the file; no image lies across two
IMAGES_A_TASK = 32


@dataclass(frozen=True)
class DataManifest:
    source: str
    split: str
    image_size: int
    crop: str
    count: int
    digest: str  # SHA-256 over identifiers and stored pixels, before JPEG, in order
    beton_bytes: int
    unreadable: int  # images of the source that were left out; listed in <split>.unreadable.txt
    label_names: list[str]
    fingerprint: str  # of the source, see Source.fingerprint
    versions: dict[str, str]


def manifest_path(path: Path) -> Path:
    return path.with_suffix(".json")


def unreadable_path(path: Path) -> Path:
    return path.with_suffix(".unreadable.txt")


def write_beton(
    source: Source,
    path: Path,
    image_size: int,
    *,
    split: str,
    strict: bool = False,
    workers: int = os.cpu_count() or 1,
    advance: Advance = ignore,
) -> DataManifest:
    """Writes `source`, cropped and resized to image_size x image_size, to `path` (<split>.beton).

    Images that cannot be read are left out and listed in <split>.unreadable.txt (identifier, tab, reason);
    with `strict` the first one raises UnreadableImage. ValueError where no image can be read. `workers` threads
    decode. Killed at any moment, it leaves no manifest, or the old file with its old manifest.
    """
    if not 1 <= image_size <= LARGEST_IMAGE:
        raise ValueError(f"image_size {image_size} is not possible: choose 1 to {LARGEST_IMAGE} pixels")
    fingerprint = source.fingerprint()  # before reading: what changes meanwhile must be prepared again
    digest = hashlib.sha256()
    unreadable: list[tuple[str, str]] = []
    with atomic_write(path) as temporary:
        with temporary.open("wb") as file:
            beton = _BetonFile(file, capacity=len(source))
            for identifier, image in _encoded_images(source, image_size, workers):
                if isinstance(image, UnreadableImage):
                    if strict:
                        raise image
                    unreadable.append((identifier, " ".join(str(image).split())))
                else:
                    beton.append(image)
                    digest.update(_file_name_bytes(identifier) + b"\0" + image.pixel_digest)
                advance(1)
            if not beton.count:
                raise ValueError(f"no image of {source.name} can be read: {unreadable[0][1]}")
            beton.finish()
        # From here until the new manifest is written, there is none: the set is not whole.
        manifest_path(path).unlink(missing_ok=True)
    _write_unreadable(unreadable_path(path), unreadable)
    manifest = DataManifest(
        source=source.name,
        split=split,
        image_size=image_size,
        crop=CROP_RULE,
        count=beton.count,
        digest=digest.hexdigest(),
        beton_bytes=path.stat().st_size,
        unreadable=len(unreadable),
        label_names=list(source.label_names),
        fingerprint=fingerprint,
        versions={package: version(package) for package in ("ffcv", "numpy", "pillow")},
    )
    write_json(manifest_path(path), asdict(manifest))
    return manifest


def read_manifest(path: Path) -> DataManifest:
    """The manifest of the .beton file `path`; ValueError where it is missing, damaged or of another kind."""
    file = manifest_path(path)
    if not file.exists():
        raise ValueError(f"{file} does not exist, so {path} is not whole: prepare the data set again")
    values = read_json(file)
    expected = {field.name: field.type for field in fields(DataManifest)}
    if not isinstance(values, dict) or values.keys() != expected.keys():
        raise ValueError(f"{file} does not have the entries {', '.join(expected)}: prepare the data set again")
    for name, kind in expected.items():
        # Annotations are text here, as "int" or "list[str]"
        if type(values[name]).__name__ != str(kind).split("[")[0]:
            raise ValueError(f"{file}: {name} is {values[name]!r}, not {kind}: prepare the data set again")
    return DataManifest(**values)


def check_beton(path: Path) -> DataManifest:
    """The manifest, after the file was found to be there, of the size and of the content it should have.

    Pixels are not read. ValueError names the file, what was expected and what was found.
    """
    manifest = read_manifest(path)
    if not path.exists():
        raise ValueError(f"{path} does not exist, but its manifest does: prepare the data set again")
    found_bytes = path.stat().st_size
    if found_bytes != manifest.beton_bytes:
        raise ValueError(
            f"{path} has {found_bytes:,} bytes, its manifest says {manifest.beton_bytes:,}: "
            "it is truncated or of another data set; prepare it again"
        )
    header = np.fromfile(path, ffcv_types.HeaderType, count=1)
    expected = (ffcv_types.CURRENT_VERSION, len(_FIELDS), manifest.count)
    found = tuple(header[["version", "num_fields", "num_samples"]].tolist()[0]) if len(header) else ()
    if found != expected:
        raise ValueError(
            f"{path} is not the .beton file of its manifest: version, fields and images are {found}, "
            f"expected {expected}; prepare it again"
        )
    return manifest


def is_prepared(source: Source, path: Path, image_size: int, *, split: str) -> bool:
    """Whether write_beton would write what is there already, told without decoding an image.

    It compares what the manifest says with the source's name, number of images and fingerprint (for a folder:
    the paths, sizes and times of change of its files). False too where the file is missing or damaged.
    """
    try:
        manifest = check_beton(path)
    except ValueError:
        return False
    found = (manifest.source, manifest.split, manifest.image_size, manifest.crop, manifest.fingerprint)
    expected = (source.name, split, image_size, CROP_RULE, source.fingerprint())
    return found == expected and manifest.count + manifest.unreadable == len(source)


def stored_rows(source: Source, path: Path) -> np.ndarray:
    """int64 [count], the number in `source` of the image in each row of the .beton file `path`, made of it.

    ValueError where the file and the list of images that were left out do not agree.
    """
    listed = unreadable_path(path)
    lines = listed.read_bytes().split(b"\n")[:-1] if listed.exists() else []
    left_out = {line.rsplit(b"\t", 1)[0] for line in lines}
    rows = [i for i, identifier in enumerate(source.identifiers) if _file_name_bytes(identifier) not in left_out]
    count = read_manifest(path).count
    if len(rows) != count:
        raise ValueError(
            f"{path} has {count:,} images, but {source.name} has {len(source):,}, of which {listed.name} lists "
            f"{len(lines):,} as left out: prepare the data set again"
        )
    return np.array(rows, np.int64)


def crop_and_resize(image: np.ndarray, image_size: int) -> np.ndarray:
    """uint8 [H, W, 3] to uint8 [image_size, image_size, 3]: the largest square in the middle, resized.

    Lanczos to make it smaller, as the data tools of StyleGAN and EDM do (Pillow widens the filter by the
    factor, so it does not alias; its box filter is an exact mean at whole factors only), bicubic to make it
    larger.
    """
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = image[top : top + side, left : left + side]
    if side == image_size:
        return np.ascontiguousarray(square)
    resampling = Image.Resampling.LANCZOS if side > image_size else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(square).resize((image_size, image_size), resampling))


_FIELDS = {"image": RGBImageField(), "index": IntField(), "label": IntField()}
_ROW_TYPE = ffcv_types.get_metadata_type(list(_FIELDS.values()))


class _EncodedImage(NamedTuple):
    row: np.ndarray  # FFCV's description of the image, of one entry, yet without its place in the file
    data: bytes  # raw or JPEG
    label: int
    pixel_digest: bytes


def _encoded_images(
    source: Source, image_size: int, workers: int
) -> Iterator[tuple[str, _EncodedImage | UnreadableImage]]:
    """All images in order, with identifiers. Pillow and OpenCV let other threads run while they work."""
    field = RGBImageField("raw" if image_size <= LARGEST_RAW else "jpg", jpeg_quality=JPEG_QUALITY)

    def encode(numbers: range) -> list[tuple[str, _EncodedImage | UnreadableImage]]:
        return [(source.identifiers[i], _encode(source, i, image_size, field)) for i in numbers]

    pending: deque[Future[list[tuple[str, _EncodedImage | UnreadableImage]]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(source), IMAGES_A_TASK):
            pending.append(pool.submit(encode, range(start, min(start + IMAGES_A_TASK, len(source)))))
            if len(pending) > 2 * workers:  # bounds the memory where decoding is faster than the disk
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()


def _encode(source: Source, i: int, image_size: int, field: RGBImageField) -> _EncodedImage | UnreadableImage:
    try:
        sample = source.read(i)
    except UnreadableImage as error:
        return error
    pixels = crop_and_resize(sample.image, image_size)
    stored = np.empty(0, np.uint8)

    def allocate(size: int) -> tuple[int, np.ndarray]:
        nonlocal stored
        stored = np.empty(size, np.uint8)
        return 0, stored

    row = np.zeros(1, field.metadata_type)
    field.encode(row, pixels, allocate)
    return _EncodedImage(row, stored.tobytes(), sample.label, hashlib.sha256(pixels.tobytes()).digest())


class _BetonFile:
    """FFCV's file: header, descriptions of the fields, a row a sample, data, table of allocations.

    The rows come before the data, so room is kept for `capacity` of them; readers look at the first `count`.
    """

    def __init__(self, file: BinaryIO, capacity: int) -> None:
        self._file = file
        self._rows = np.zeros(capacity, _ROW_TYPE)
        self._allocations = np.zeros(capacity, ffcv_types.ALLOC_TABLE_TYPE)
        self._descriptions = np.zeros(len(_FIELDS), ffcv_types.FieldDescType)
        for description, (name, field) in zip(self._descriptions, _FIELDS.items(), strict=True):
            types = ffcv_types.TYPE_ID_HANDLER.items()
            description["type_id"] = next(number for number, kind in types if kind is type(field))
            description["name"][: len(name)] = np.frombuffer(name.encode("ascii"), np.uint8)
        self._offset = ffcv_types.HeaderType.itemsize + self._descriptions.nbytes + self._rows.nbytes
        self._next_page()
        self.count = 0

    def _next_page(self) -> None:
        self._offset += -self._offset % PAGE_BYTES
        self._file.seek(self._offset)

    def append(self, image: _EncodedImage) -> None:
        if self._offset % PAGE_BYTES + len(image.data) > PAGE_BYTES:
            self._next_page()
        self._file.write(image.data)
        image.row["data_ptr"] = self._offset
        self._rows[self.count] = (image.row[0], self.count, image.label)
        self._allocations[self.count] = (self.count, self._offset, len(image.data))
        self._offset += len(image.data)
        self.count += 1

    def finish(self) -> None:
        """Writes the tables, which are known only now."""
        self._file.write(self._allocations[: self.count].tobytes())
        header = np.zeros(1, ffcv_types.HeaderType)
        header["version"] = ffcv_types.CURRENT_VERSION
        header["num_fields"] = len(_FIELDS)
        header["page_size"] = PAGE_BYTES
        header["num_samples"] = self.count
        header["alloc_table_ptr"] = self._offset
        self._file.seek(0)
        for table in (header, self._descriptions, self._rows):
            self._file.write(table.tobytes())


def _write_unreadable(path: Path, unreadable: list[tuple[str, str]]) -> None:
    path.unlink(missing_ok=True)
    if unreadable:
        lines = [
            _file_name_bytes(identifier) + b"\t" + reason.encode("utf-8", "backslashreplace") + b"\n"
            for identifier, reason in unreadable
        ]
        with atomic_write(path) as temporary:
            temporary.write_bytes(b"".join(lines))


def _file_name_bytes(identifier: str) -> bytes:
    """An identifier is a path, and a path need not be valid text."""
    return os.fsencode(identifier)
