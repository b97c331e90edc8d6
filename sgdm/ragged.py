"""Annotations of many images as ragged arrays, and the views of a batch: what sgdm.raster draws.

Each kind has an array of values and offsets into it: the items of number i are offsets[i] <= item < offsets[i + 1].
`image_offsets` leads from images to objects in the same way, `class_ids` has one class an object. The arrays may be
memory maps: they are read where they are. `of` makes them from nested sequences, image by image, object by object.

Values are judged when they are drawn; here ValueError is raised only for what cannot be stored at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

import sgdm._raster as _raster

Layout = Literal["xyxy", "xywh", "cxcywh"]
Sampling = Literal["centre", "pil_nearest"]
Images = Sequence[Sequence[Any]]


def exact_array(name: str, values: Any, dtype: type[np.generic]) -> NDArray[Any]:
    """`values` in C order as `dtype`, the same array where it is that already; ValueError where values would change."""
    try:
        given = np.asarray(values)
        with np.errstate(invalid="ignore"):
            array = np.asarray(given, dtype=dtype, order="C")
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{name} cannot be {np.dtype(dtype).name}: {error}") from error
    if np.issubdtype(dtype, np.integer) and given.dtype != dtype and not np.array_equal(array, given):
        changed = given.ravel()[array.ravel() != given.ravel()]
        raise ValueError(f"{name} cannot be {np.dtype(dtype).name}: it has {changed[0]}")
    return array


def offsets_of(items: Sequence[Any]) -> NDArray[np.int64]:
    """int64 [len(items) + 1], where each of them starts and the last one ends."""
    return np.cumsum([0, *map(len, items)], dtype=np.int64)


def _objects(images: Images) -> list[tuple[str, Any]]:
    """Every object with the name of its place."""
    return [
        (f"image {image}, object {number}", item)
        for image, objects in enumerate(images)
        for number, item in enumerate(objects)
    ]


def _concatenate(arrays: Sequence[NDArray[Any]], dtype: type[np.generic]) -> NDArray[Any]:
    return np.concatenate([np.zeros(0, dtype), *(array.ravel() for array in arrays)])


def _classes(class_ids: Images | None, images: Images) -> NDArray[np.int32]:
    if class_ids is None:
        return np.zeros(sum(map(len, images)), np.int32)
    for number, (ids, objects) in enumerate(zip(class_ids, images, strict=True)):
        if len(ids) != len(objects):
            raise ValueError(f"image {number} has {len(ids)} class ids for {len(objects)} objects")
    arrays = [exact_array(f"image {number}: classes", ids, np.int32) for number, ids in enumerate(class_ids)]
    return _concatenate(arrays, np.int32)


def _compressed(place: str, counts: bytes | str | Sequence[int]) -> NDArray[np.uint8]:
    if isinstance(counts, str | bytes):
        return np.frombuffer(counts.encode() if isinstance(counts, str) else counts, np.uint8)
    array = exact_array(f"{place}: counts", counts, np.uint32)
    return _raster.compress(array, np.array([0, array.size]))[0]


def _rasters(named: Sequence[tuple[str, Any]], dtype: type[np.generic]) -> dict[str, NDArray[Any]]:
    """Values, offsets and sizes of arrays [height, width]."""
    arrays = [exact_array(place, item, dtype) for place, item in named]
    for (place, item), array in zip(named, arrays, strict=True):
        if np.ndim(item) != 2:
            raise ValueError(f"{place} must be [height, width], got shape {array.shape}")
    return {
        "values": _concatenate(arrays, dtype),
        "offsets": offsets_of([array.ravel() for array in arrays]),
        "sizes": np.array([array.shape for array in arrays]).reshape(-1, 2),
    }


@dataclass(frozen=True)
class _Typed:
    """A dataclass whose arrays are brought to the types in `dtypes`."""

    dtypes: ClassVar[dict[str, tuple[type[np.generic], ...]]]  # where several are possible, others become the last

    def __post_init__(self) -> None:
        for name, possible in self.dtypes.items():
            array = np.asarray(getattr(self, name))
            dtype = array.dtype.type if array.dtype in possible else possible[-1]
            object.__setattr__(self, name, exact_array(name, array, dtype))


@dataclass(frozen=True, kw_only=True)
class Views(_Typed):
    """What a batch shows of its source images: row b of the batch through view b.

    Boxes and polygons may be in units of their own: boxes of 0 to 1 have sources of size 1 x 1.
    """

    sizes: NDArray[np.int64]  # [B, 2] height and width of the sources
    crops: NDArray[np.float64]  # [B, 4] x0 y0 x1 y1, half-open, in the source
    flips: NDArray[np.uint8]  # [B] 1: left to right, after the crop
    sampling: Sampling = "centre"

    dtypes: ClassVar = {"sizes": (np.int64,), "crops": (np.float64,), "flips": (np.uint8,)}

    @classmethod
    def of(
        cls,
        sizes: ArrayLike,
        crops: ArrayLike | None = None,
        flips: ArrayLike | None = None,
        sampling: Sampling = "centre",
    ) -> Views:
        """Views of `crops`, else of whole sources; flipped where `flips` is true, else as they are."""
        pairs = exact_array("sizes", sizes, np.int64).reshape(-1, 2)
        if crops is None:
            crops = np.concatenate([np.zeros_like(pairs), pairs[:, ::-1]], axis=1)
        flips = np.zeros(len(pairs)) if flips is None else flips
        return cls(sizes=pairs, crops=np.asarray(crops), flips=np.asarray(flips), sampling=sampling)

    def batch(self, images: NDArray[np.int64]) -> _raster.Batch:
        """What C++ reads; `images` int64 [B] are the numbers of the images that the views are of."""
        if self.sampling not in ("centre", "pil_nearest"):
            raise ValueError(f"sampling {self.sampling!r} is not one of centre, pil_nearest")
        return _raster.Batch(images, self.sizes, self.crops, self.flips, self.sampling == "pil_nearest")


@dataclass(frozen=True, kw_only=True)
class _Objects(_Typed):
    image_offsets: NDArray[np.int64]  # [images + 1], into objects
    class_ids: NDArray[np.int32]  # [N]

    dtypes: ClassVar = {"image_offsets": (np.int64,), "class_ids": (np.int32,)}

    @property
    def num_images(self) -> int:
        return len(self.image_offsets) - 1


@dataclass(frozen=True, kw_only=True)
class Boxes(_Objects):
    """Half-open boxes."""

    corners: NDArray[np.float64]  # [N, 4] x0 y0 x1 y1

    dtypes = _Objects.dtypes | {"corners": (np.float64,)}

    @classmethod
    def of(cls, images: Images, class_ids: Images | None = None, layout: Layout = "xyxy") -> Boxes:
        """Four numbers a box: its corners, a corner and the size ("xywh", as COCO), or the centre and the size."""
        boxes = [exact_array(f"image {number}: boxes", item, np.float64) for number, item in enumerate(images)]
        for number, box in enumerate(boxes):
            if box.size and (box.ndim != 2 or box.shape[1] != 4):
                raise ValueError(f"image {number}: boxes must be [n, 4], got shape {box.shape}")
        values = _concatenate(boxes, np.float64).reshape(-1, 4)
        start, second = values[:, :2], values[:, 2:]
        if layout == "cxcywh":
            start = start - second / 2
        elif layout not in ("xyxy", "xywh"):
            raise ValueError(f"layout {layout!r} is not one of xyxy, xywh, cxcywh")
        end = second if layout == "xyxy" else start + second
        return cls(
            corners=np.concatenate([start, end], axis=1),
            image_offsets=offsets_of(images),
            class_ids=_classes(class_ids, images),
        )

    def annotations(self) -> _raster.Annotations:
        return _raster.boxes(self.corners, self.image_offsets, self.class_ids)


@dataclass(frozen=True, kw_only=True)
class Polygons(_Objects):
    """Objects made of one polygon or several, whose union counts."""

    coordinates: NDArray[np.float64]  # x y x y ... of one part after another
    part_offsets: NDArray[np.int64]  # [parts + 1], into coordinates
    object_offsets: NDArray[np.int64]  # [N + 1], into parts

    dtypes = _Objects.dtypes | {
        "coordinates": (np.float64,),
        "part_offsets": (np.int64,),
        "object_offsets": (np.int64,),
    }

    @classmethod
    def of(cls, images: Images, class_ids: Images | None = None) -> Polygons:
        """An object is a sequence of parts, a part a sequence x y x y ...: COCO's `segmentation`."""
        objects = _objects(images)
        parts = [exact_array(place, part, np.float64).ravel() for place, item in objects for part in item]
        return cls(
            coordinates=_concatenate(parts, np.float64),
            part_offsets=offsets_of(parts),
            object_offsets=offsets_of([item for _, item in objects]),
            image_offsets=offsets_of(images),
            class_ids=_classes(class_ids, images),
        )

    def annotations(self) -> _raster.Annotations:
        return _raster.polygons(
            self.coordinates, self.part_offsets, self.object_offsets, self.image_offsets, self.class_ids
        )


@dataclass(frozen=True, kw_only=True)
class _Sized(_Objects):
    values: NDArray[Any]
    offsets: NDArray[np.int64]  # [N + 1], into values
    sizes: NDArray[np.int64]  # [N, 2] height and width of the source image

    dtypes = _Objects.dtypes | {"offsets": (np.int64,), "sizes": (np.int64,)}


@dataclass(frozen=True, kw_only=True)
class RunLengths(_Sized):
    """COCO's run lengths: `values` are uint8 characters where compressed, else uint32 counts."""

    dtypes = _Sized.dtypes | {"values": (np.uint8, np.uint32)}

    @classmethod
    def of(cls, images: Images, class_ids: Images | None = None) -> RunLengths:
        """An object is COCO's {"size": [height, width], "counts": bytes, str or list of counts}; stored compressed."""
        objects = _objects(images)
        texts = [_compressed(place, segment["counts"]) for place, segment in objects]
        return cls(
            values=_concatenate(texts, np.uint8),
            offsets=offsets_of(texts),
            sizes=np.array([segment["size"] for _, segment in objects]).reshape(-1, 2),
            image_offsets=offsets_of(images),
            class_ids=_classes(class_ids, images),
        )

    @property
    def compressed(self) -> bool:
        return self.values.dtype == np.uint8

    def compress(self) -> RunLengths:
        """The same, compressed."""
        if self.compressed:
            return self
        values, offsets = _raster.compress(self.values, self.offsets)
        return replace(self, values=values, offsets=offsets)

    def uncompress(self) -> RunLengths:
        """The same as counts; ValueError names the object whose characters are not COCO's."""
        if not self.compressed:
            return self
        values, offsets = _raster.uncompress(self.values, self.offsets)
        return replace(self, values=values, offsets=offsets)

    def segments(self) -> list[dict[str, Any]]:
        """Object by object what pycocotools takes: {"size": [height, width], "counts": bytes}."""
        texts = self.compress()
        return [
            {"size": size.tolist(), "counts": texts.values[begin:end].tobytes()}
            for size, begin, end in zip(texts.sizes, texts.offsets[:-1], texts.offsets[1:], strict=True)
        ]

    def annotations(self) -> _raster.Annotations:
        return _raster.run_lengths(self.values, self.offsets, self.sizes, self.image_offsets, self.class_ids)


@dataclass(frozen=True, kw_only=True)
class Masks(_Sized):
    """Binary masks: `values` are uint8, row-major, not zero inside."""

    dtypes = _Sized.dtypes | {"values": (np.uint8,)}

    @classmethod
    def of(cls, images: Images, class_ids: Images | None = None) -> Masks:
        """An object is an array [height, width] of bool or uint8."""
        return cls(
            **_rasters(_objects(images), np.uint8),
            image_offsets=offsets_of(images),
            class_ids=_classes(class_ids, images),
        )

    def annotations(self) -> _raster.Annotations:
        return _raster.masks(self.values, self.offsets, self.sizes, self.image_offsets, self.class_ids)


@dataclass(frozen=True, kw_only=True)
class LabelMaps(_Typed):
    """One label map an image: its pixels' labels, and the class that each label stands for."""

    values: NDArray[Any]  # uint8 or int32, row-major
    offsets: NDArray[np.int64]  # [images + 1], into values
    sizes: NDArray[np.int64]  # [images, 2] height and width
    classes: NDArray[np.int32]  # look-up table: the class of each label, -1 for none
    ignore: int | None = None  # a label of no class, whatever the table says

    dtypes: ClassVar = {
        "values": (np.uint8, np.int32),
        "offsets": (np.int64,),
        "sizes": (np.int64,),
        "classes": (np.int32,),
    }

    @classmethod
    def of(cls, images: Sequence[ArrayLike], classes: ArrayLike | int, ignore: int | None = None) -> LabelMaps:
        """Arrays [height, width]; `classes` is the look-up table, or K where labels 0 .. K-1 are the classes."""
        maps = [(f"image {number}", np.asarray(image)) for number, image in enumerate(images)]
        dtype = np.uint8 if all(image.dtype == np.uint8 for _, image in maps) else np.int32
        table = np.arange(classes) if isinstance(classes, int) else classes
        return cls(**_rasters(maps, dtype), classes=exact_array("classes", table, np.int32), ignore=ignore)

    @property
    def num_images(self) -> int:
        return len(self.offsets) - 1

    def annotations(self) -> _raster.LabelMaps:
        return _raster.label_maps(self.values, self.offsets, self.sizes, self.classes, self.ignore)


Objects = Boxes | Polygons | RunLengths | Masks
