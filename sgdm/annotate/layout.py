"""A layout set on disk: where things are in each image of a prepared data set, as boxes or as segments.

manifest.json           LayoutManifest, written last: without it there is no layout set
image_offsets.npy       int64 [N + 1], the objects of image n are image_offsets[n] <= object < image_offsets[n + 1]
class_ids.npy           int32 [M], into LayoutManifest.class_names
boxes.npy               of boxes: float32 [M, 4], x0 y0 x1 y1, half-open, from 0 to 1 of the stored image
segments.npy            of segments: uint8 [characters], COCO's compressed run lengths one after another
segment_offsets.npy     of segments: int64 [M + 1], into the characters
segment_sizes.npy       of segments: int64 [M, 2], height and width of the stored image

Each file is a field of sgdm.ragged.Boxes or RunLengths, so that a loaded set is drawn from where it is mapped.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from sgdm.files import atomic_write, read_json, write_json
from sgdm.ragged import Boxes, RunLengths

MANIFEST = "manifest.json"

Kind = Literal["boxes", "segments"]


class LayoutError(ValueError):
    """A layout set is missing, damaged, or belongs to other data."""


@dataclass(frozen=True)
class LayoutManifest:
    data_digest: str  # DataManifest.digest of the images
    kind: Kind
    method: str  # what found the objects, "truth" where the source told
    weights_digest: str  # Encoder.digest; empty where no network looked
    class_names: list[str]
    seed: int
    parameters: dict[str, Any]  # whatever else the method was given
    versions: dict[str, str]
    report: dict[str, Any]

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


class Layout(NamedTuple):
    manifest: LayoutManifest
    objects: Boxes | RunLengths  # boxes in units of the image (sources of 1 x 1), segments at the stored size


class _File(NamedTuple):
    name: str
    dtype: type[np.generic]
    row: tuple[int, ...]  # the shape after the first dimension


_COMMON = {
    "image_offsets": _File("image_offsets.npy", np.int64, ()),
    "class_ids": _File("class_ids.npy", np.int32, ()),
}
_FILES: dict[Kind, dict[str, _File]] = {
    "boxes": _COMMON | {"corners": _File("boxes.npy", np.float32, (4,))},
    "segments": _COMMON
    | {
        "values": _File("segments.npy", np.uint8, ()),
        "offsets": _File("segment_offsets.npy", np.int64, ()),
        "sizes": _File("segment_sizes.npy", np.int64, (2,)),
    },
}
_TYPES: dict[Kind, type[Boxes | RunLengths]] = {"boxes": Boxes, "segments": RunLengths}


def save_layout(folder: Path, manifest: LayoutManifest, objects: Boxes | RunLengths) -> None:
    """Writes `objects`, one image after another in the order of the data set, and last the manifest.

    Corners of boxes are from 0 to 1 and become float32. ValueError where objects and manifest do not agree.
    Interrupted at any moment, it leaves a folder without a manifest, which load_layout refuses.
    """
    if not isinstance(objects, _TYPES[manifest.kind]):
        raise LayoutError(f"a layout of {manifest.kind} cannot hold {type(objects).__name__}")
    if isinstance(objects, RunLengths):
        objects = objects.compress()
    _check(folder, manifest, objects)
    (folder / MANIFEST).unlink(missing_ok=True)
    for field, file in _FILES[manifest.kind].items():
        with atomic_write(folder / file.name) as temporary:
            np.save(temporary, getattr(objects, field).astype(file.dtype, copy=False), allow_pickle=False)
    write_json(folder / MANIFEST, asdict(manifest))


def load_layout(folder: Path, data_digest: str) -> Layout:
    """The layout set in `folder`, memory-mapped; LayoutError where it is missing, damaged or of other data.

    `data_digest` is the DataManifest.digest of the images that it is going to be used with. Run lengths are
    judged when they are drawn, all else here.
    """
    manifest = _read_manifest(folder / MANIFEST)
    if manifest.data_digest != data_digest:
        raise LayoutError(
            f"{folder} is the layout of the data set {manifest.data_digest}, but this one is {data_digest}: "
            "make it again, or point at the data set that it was made for"
        )
    arrays = {field: _read_array(folder / file.name, file) for field, file in _FILES[manifest.kind].items()}
    objects = _TYPES[manifest.kind](**arrays)
    _check(folder, manifest, objects)
    return Layout(manifest, objects)


def _check(folder: Path, manifest: LayoutManifest, objects: Boxes | RunLengths) -> None:
    """LayoutError where offsets, classes or corners are not possible."""
    files = _FILES[manifest.kind]
    ends = {"image_offsets": len(objects.class_ids)}
    if isinstance(objects, RunLengths):
        ends["offsets"] = len(objects.values)
    for field, end in ends.items():
        offsets = getattr(objects, field)
        if not (len(offsets) and offsets[0] == 0 and offsets[-1] == end and (np.diff(offsets) >= 0).all()):
            raise LayoutError(
                f"{folder / files[field].name} is damaged: offsets must rise from 0 to {end}. Make the layout again"
            )
    of_objects = objects.corners if isinstance(objects, Boxes) else objects.sizes
    counts = {len(objects.class_ids), len(of_objects)}
    if isinstance(objects, RunLengths):
        counts.add(len(objects.offsets) - 1)
    if len(counts) > 1:
        raise LayoutError(f"{folder} is damaged: its files tell of {sorted(counts)} objects. Make the layout again")
    ids = objects.class_ids
    if len(ids) and not (ids.min() >= 0 and ids.max() < manifest.num_classes):
        raise LayoutError(
            f"{folder / files['class_ids'].name} is damaged: ids lie outside of 0 to {manifest.num_classes - 1}. "
            "Make the layout again"
        )
    if isinstance(objects, Boxes):
        first, last = objects.corners[:, :2], objects.corners[:, 2:]
        if not ((first >= 0) & (first <= last) & (last <= 1)).all():  # nan too
            raise LayoutError(
                f"{folder / files['corners'].name} is damaged: corners must be 0 <= x0 <= x1 <= 1 and likewise y. "
                "Make the layout again"
            )


def _read_manifest(path: Path) -> LayoutManifest:
    if not path.is_file():
        raise LayoutError(f"{path} is missing: there is no whole layout set there. Make the layout first")
    found = read_json(path)
    names = {field.name for field in fields(LayoutManifest)}
    if not isinstance(found, dict) or found.keys() != names or found["kind"] not in tuple(_FILES):
        raise LayoutError(
            f"{path} is damaged or of another version: it must hold {sorted(names)} and a kind of "
            f"{' or '.join(_FILES)}. Make the layout again"
        )
    return LayoutManifest(**found)


def _read_array(path: Path, file: _File) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise LayoutError(f"{path} is missing or damaged ({error}). Make the layout again") from error
    shape = [len(array), *file.row] if array.ndim else []
    if array.dtype != file.dtype or list(array.shape) != shape:
        raise LayoutError(
            f"{path} is damaged: it holds {array.dtype} {list(array.shape)}, not {np.dtype(file.dtype)} "
            f"of rows {list(file.row)}. Make the layout again"
        )
    return array
