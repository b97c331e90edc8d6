"""A layout set on disk: where things are in each image of a prepared data set, as boxes or as segments, by arrays
beside a manifest (sgdm.annotate.sets).

image_offsets.npy       int64 [N + 1], the objects of image n are image_offsets[n] <= object < image_offsets[n + 1]
class_ids.npy           int32 [M], into LayoutManifest.class_names
boxes.npy               of boxes: float32 [M, 4], x0 y0 x1 y1, half-open, from 0 to 1 of the stored image
segments.npy            of segments: uint8 [characters], COCO's compressed run lengths one after another
segment_offsets.npy     of segments: int64 [M + 1], into the characters
segment_sizes.npy       of segments: int64 [M, 2], height and width of the stored image

Each file is a field of sgdm.ragged.Boxes or RunLengths, so that a loaded set is drawn from where it is mapped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from sgdm.annotate.sets import AnnotationError, load_set, save_set
from sgdm.ragged import Boxes, RunLengths

Kind = Literal["boxes", "segments"]


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


_TYPES: dict[Kind, type[Boxes | RunLengths]] = {"boxes": Boxes, "segments": RunLengths}
# The fields of Boxes and RunLengths, and what their files are called.
_COMMON = {"image_offsets": "image_offsets", "class_ids": "class_ids"}
_FILES: dict[Kind, dict[str, str]] = {
    "boxes": _COMMON | {"corners": "boxes"},
    "segments": _COMMON | {"values": "segments", "offsets": "segment_offsets", "sizes": "segment_sizes"},
}
OFFSETS = {"image_offsets", "segment_offsets"}


def save_layout(folder: Path, manifest: LayoutManifest, *parts: Boxes | RunLengths) -> None:
    """Writes objects, one image after another in the order of the data set, in one part or more.

    Corners of boxes are from 0 to 1 and become float32, run lengths are compressed. AnnotationError where objects and
    manifest do not agree.
    """
    for part in parts:
        _check(manifest, part)
    arrays = [as_arrays(part) for part in parts]
    joined = {name: [part[name] for part in arrays] for name in arrays[0]}
    for name in OFFSETS & joined.keys():
        joined[name] = _one_after_another(joined[name])
    save_set(folder, manifest, joined)


def as_arrays(objects: Boxes | RunLengths) -> dict[str, np.ndarray]:
    """Objects as the arrays of a set."""
    if isinstance(objects, Boxes):
        arrays = {file: getattr(objects, field) for field, file in _FILES["boxes"].items()}
        return {**arrays, "boxes": objects.corners.astype(np.float32)}
    return {file: getattr(objects.compress(), field) for field, file in _FILES["segments"].items()}


def as_objects(kind: Kind, arrays: Mapping[str, np.ndarray]) -> Boxes | RunLengths:
    """What as_arrays was given."""
    return _TYPES[kind](**{field: arrays[file] for field, file in _FILES[kind].items()})


def load_layout(folder: Path, data_digest: str) -> Layout:
    """The layout set in `folder`, memory-mapped; AnnotationError where it is missing, damaged or of other images than
    those of `data_digest`."""
    manifest, arrays = load_set(folder, LayoutManifest, data_digest)
    return Layout(manifest, as_objects(manifest.kind, arrays))


def _one_after_another(offsets: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Offsets of parts as those of the whole."""
    starts = np.cumsum([0, *(part[-1] for part in offsets)])
    return [offsets[0], *(part[1:] + start for part, start in zip(offsets[1:], starts[1:], strict=False))]


def _check(manifest: LayoutManifest, objects: Boxes | RunLengths) -> None:
    """AnnotationError where the type, offsets, classes or corners are not possible."""
    if not isinstance(objects, _TYPES[manifest.kind]):
        raise AnnotationError(f"a layout of {manifest.kind} cannot hold {type(objects).__name__}")
    ends = {"image_offsets": len(objects.class_ids)}
    if isinstance(objects, RunLengths):
        ends["offsets"] = len(objects.values)
    for field, end in ends.items():
        offsets = getattr(objects, field)
        if not (len(offsets) and offsets[0] == 0 and offsets[-1] == end and (np.diff(offsets) >= 0).all()):
            raise AnnotationError(f"{field} of a layout must rise from 0 to {end}")
    counts = {len(objects.class_ids), len(objects.corners if isinstance(objects, Boxes) else objects.sizes)}
    if isinstance(objects, RunLengths):
        counts.add(len(objects.offsets) - 1)
    if len(counts) > 1:
        raise AnnotationError(f"the fields of a layout tell of {sorted(counts)} objects")
    ids = objects.class_ids
    if len(ids) and not (ids.min() >= 0 and ids.max() < manifest.num_classes):
        raise AnnotationError(f"class_ids of a layout must lie within 0 to {manifest.num_classes - 1}")
    if isinstance(objects, Boxes):
        first, last = objects.corners[:, :2], objects.corners[:, 2:]
        if not ((first >= 0) & (first <= last) & (last <= 1)).all():  # nan too
            raise AnnotationError("corners of a layout must be 0 <= x0 <= x1 <= 1 and likewise y")
