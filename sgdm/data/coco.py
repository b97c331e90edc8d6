"""A folder of the COCO format: annotations/instances_<name>.json beside <name>/ with the images (arXiv 1405.0312)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError

from sgdm.data.sources import NO_LABEL, MissingSplit, Sample, Split, UnreadableImage, decode_image, fingerprint_files
from sgdm.data.truth import Truth
from sgdm.ragged import Boxes, Polygons, RunLengths

FEWEST_COORDINATES = 6  # of a polygon; real sets hold points and lines, which have no area


class _Entry(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False)


class _Image(_Entry):
    id: int
    file_name: str = Field(min_length=1)
    height: PositiveInt
    width: PositiveInt


class _Category(_Entry):
    id: int
    name: str


class _RunLength(_Entry):
    size: tuple[int, int]  # height and width
    counts: list[NonNegativeInt] | str


# An array at once: COCO's 118,000 images have 40 million coordinates, and as many Python objects would take gigabytes.
_Polygon = Annotated[list[float], AfterValidator(np.asarray)]


class _Annotation(_Entry):
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float] | None = None  # x y width height
    segmentation: _RunLength | list[_Polygon] | None = None
    iscrowd: bool = False


class _Images(_Entry):
    images: list[_Image]


class _Objects(_Entry):
    annotations: list[_Annotation]
    categories: list[_Category]


_Part = TypeVar("_Part", _Images, _Objects)  # of an annotation file; objects are read only when they are asked for


class CocoFolder:
    """The images that annotations/instances_<name>.json lists, sorted by file name.

    <name> begins with the split: train, train2017, val2014, ... Images lie in <name>/ or images/<name>/. Those
    without annotations belong to the set too; a listed image that is missing, or is not of the listed size, is
    unreadable. A whole image has no label.

    Truth: boxes of all annotations but crowds, as these are no single objects; segments of all that have one (polygons
    and run lengths, crowds among them).
    """

    label_names: Sequence[str] = ()

    def __init__(self, root: Path, split: Split) -> None:
        self.name = root.resolve().name
        self._root = root
        self._file = _annotation_file(root, split)
        self._images = sorted(_parse(self._file, _Images).images, key=lambda image: image.file_name)
        if not self._images:
            raise ValueError(f"{self._file} lists no image")
        _refuse_twice(self._file, "images", self._images)
        self.identifiers: Sequence[str] = [image.file_name for image in self._images]
        self._place = _place_of_images(root, self._file)

    def __len__(self) -> int:
        return len(self.identifiers)

    def read(self, i: int) -> Sample:
        entry = self._images[i]
        path = self._root / self._place / entry.file_name
        image = decode_image(path)
        height, width = image.shape[:2]
        if (height, width) != (entry.height, entry.width):
            raise UnreadableImage(
                f"{path} is {width} x {height} pixels, but {self._file.name} says {entry.width} x {entry.height}"
            )
        return Sample(image, NO_LABEL)

    def fingerprint(self) -> str:
        images = [f"{self._place}/{name}" for name in self.identifiers]
        return fingerprint_files(self._root, [*images, f"annotations/{self._file.name}"])

    def truth(self) -> Truth:
        content = _parse(self._file, _Objects)
        categories = sorted(content.categories, key=lambda category: category.id)
        _refuse_twice(self._file, "categories", categories)
        class_of = {category.id: number for number, category in enumerate(categories)}
        number_of = {image.id: number for number, image in enumerate(self._images)}
        boxes, polygons, run_lengths = (_PerImage(len(self)) for _ in range(3))
        for entry, annotation in enumerate(content.annotations):
            where = f"{self._file}: annotations.{entry}"
            if annotation.image_id not in number_of:
                raise ValueError(f"{where} is of the image {annotation.image_id}, which is not listed")
            if annotation.category_id not in class_of:
                raise ValueError(f"{where} is of the category {annotation.category_id}, which is not listed")
            number, class_id = number_of[annotation.image_id], class_of[annotation.category_id]
            if annotation.bbox and not annotation.iscrowd:
                boxes.add(number, _box(annotation.bbox, where), class_id)
            if isinstance(annotation.segmentation, _RunLength):
                run_lengths.add(number, _counts(annotation.segmentation, self._images[number], where), class_id)
            elif parts := _parts(annotation.segmentation or [], where):
                polygons.add(number, parts, class_id)
        return Truth(
            class_names=[category.name for category in categories],
            sizes=np.array([(image.height, image.width) for image in self._images], np.int64),
            boxes=Boxes.of(boxes.objects, boxes.class_ids, layout="xywh"),
            segments=(
                Polygons.of(polygons.objects, polygons.class_ids),
                RunLengths.of(run_lengths.objects, run_lengths.class_ids),
            ),
        )


class _PerImage:
    """Objects and their classes, image by image."""

    def __init__(self, images: int) -> None:
        self.objects: list[list[Any]] = [[] for _ in range(images)]
        self.class_ids: list[list[int]] = [[] for _ in range(images)]

    def add(self, image: int, value: Any, class_id: int) -> None:
        self.objects[image].append(value)
        self.class_ids[image].append(class_id)


def _box(box: tuple[float, ...], where: str) -> tuple[float, ...]:
    if min(box[2:]) < 0:
        raise ValueError(f"{where}.bbox {box} has a negative size: it must be x y width height")
    return box


def _counts(segmentation: _RunLength, image: _Image, where: str) -> dict[str, Any]:
    if segmentation.size != (image.height, image.width):
        raise ValueError(
            f"{where}.segmentation is of {segmentation.size} pixels (height, width), "
            f"but its image is of {(image.height, image.width)}"
        )
    return dict(segmentation)


def _parts(segmentation: list[Any], where: str) -> list[Any]:
    """The polygons that have an area."""
    if any(len(part) % 2 for part in segmentation):
        raise ValueError(f"{where}.segmentation has a polygon of an odd number of coordinates")
    return [part for part in segmentation if len(part) >= FEWEST_COORDINATES]


def is_coco(folder: Path) -> bool:
    """Whether the folder holds annotations/instances_*.json."""
    return any((folder / "annotations").glob("instances_*.json"))


def _annotation_file(root: Path, split: Split) -> Path:
    found = sorted((root / "annotations").glob(f"instances_{split}*.json"))
    if not found:
        raise MissingSplit(f"{root} has no {split} split: looked for annotations/instances_{split}*.json")
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise ValueError(f"{root / 'annotations'} holds several files of the {split} split ({names}): leave one there")
    return found[0]


def _place_of_images(root: Path, file: Path) -> str:
    name = file.stem.removeprefix("instances_")
    for place in (name, f"images/{name}"):
        if (root / place).is_dir():
            return place
    raise ValueError(f"the images of {file} are missing: put them into {root / name}")


def _parse(path: Path, part: type[_Part]) -> _Part:
    try:
        return part.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise ValueError(f"{path} is not of the COCO format: {place}: {first['msg']}") from error


def _refuse_twice(path: Path, name: str, entries: Sequence[_Image] | Sequence[_Category]) -> None:
    twice = [number for number, times in Counter(entry.id for entry in entries).items() if times > 1]
    if twice:
        raise ValueError(f"{path} lists the id {twice[0]} twice among its {name}")
