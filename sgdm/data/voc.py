"""A folder of the Pascal VOC format: VOCdevkit/VOC<year>/ with JPEGImages, Annotations, ImageSets and masks.

host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc describes it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from sgdm.data.sources import (
    IMAGE_SUFFIXES,
    NO_LABEL,
    MissingSplit,
    Sample,
    Split,
    UnreadableImage,
    decode_image,
    fingerprint_files,
)
from sgdm.data.truth import Truth
from sgdm.ragged import Boxes, Masks, RunLengths, Views
from sgdm.raster import encode

CLASS_NAMES = (  # their numbers in the masks are 1 to 20; 0 is background
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
IGNORED = 255  # in the masks: contours and objects too hard to tell
_CLASS_LIST = re.compile(r"(.+)_(train|val|trainval|test)\.txt")
_TURNED = (5, 6, 7, 8)  # EXIF orientations that exchange height and width


class _Entry(NamedTuple):
    year: Path
    name: str  # as the lists of images have it
    image: str  # file in JPEGImages


class VocFolder:
    """The images that ImageSets/Main/<split>.txt lists (where that is missing, ImageSets/Segmentation/<split>.txt).

    `root` is one year's folder, VOCdevkit, or the folder that holds it; of several years all are taken. An image in
    JPEGImages may have any suffix that a folder of images may have. A whole image has no label.

    Truth: boxes of all objects in Annotations, difficult ones too, as discovery is compared on them (LOST, arXiv
    2109.14279); segments, one a class, of the images that have a SegmentationClass, which are few. Classes are those
    of ImageSets/Main/<class>_<split>.txt, sorted; without these lists the twenty of VOC, or, if Annotations name
    others, the sorted names found there.
    """

    label_names: Sequence[str] = ()

    def __init__(self, root: Path, split: Split) -> None:
        self.name = root.resolve().name
        self._root = root
        self._years = _years(root)
        self._entries = [entry for year in self._years for entry in _entries(year, split)]
        if not self._entries:
            looked_for = ", ".join(str(year / "ImageSets" / "Main" / f"{split}.txt") for year in self._years)
            raise MissingSplit(f"{root} has no {split} split: looked for names of images in {looked_for}")
        self.identifiers: Sequence[str] = [
            str((entry.year / "JPEGImages" / entry.image).relative_to(root)) for entry in self._entries
        ]

    def __len__(self) -> int:
        return len(self.identifiers)

    def read(self, i: int) -> Sample:
        return Sample(decode_image(self._root / self.identifiers[i]), NO_LABEL)

    def fingerprint(self) -> str:
        files = [
            str(path.relative_to(self._root))
            for entry in self._entries
            for path in (entry.year / "JPEGImages" / entry.image, _annotation(entry), _mask(entry))
        ]
        return fingerprint_files(self._root, files)

    def truth(self) -> Truth:
        found = [_boxes(_annotation(entry)) for entry in self._entries]
        class_names = _class_names(self._years, {name for boxes in found for name, _ in boxes})
        class_of = {name: number for number, name in enumerate(class_names)}
        for entry, boxes in zip(self._entries, found, strict=True):
            for name, _ in boxes:
                if name not in class_of:
                    raise ValueError(f"{_annotation(entry)} has the class {name!r}, which ImageSets/Main does not list")
        sizes = [_size(self._root / identifier) for identifier in self.identifiers]
        segments, classes = [], []
        for entry, size in zip(self._entries, sizes, strict=True):
            objects, ids = _segments(_mask(entry), size, len(class_names))
            segments.append(objects)
            classes.append(ids)
        return Truth(
            class_names=class_names,
            sizes=np.array(sizes, np.int64),
            boxes=Boxes.of(
                [[box for _, box in boxes] for boxes in found],
                [[class_of[name] for name, _ in boxes] for boxes in found],
            ),
            segments=(RunLengths.of(segments, classes),),
        )


def is_voc(folder: Path) -> bool:
    """Whether the folder is a VOCdevkit, holds one, or is one year's folder of it."""
    return (folder / "VOCdevkit").is_dir() or bool(_year_folders(folder))


def _year_folders(folder: Path) -> list[Path]:
    if (folder / "JPEGImages").is_dir() and (folder / "Annotations").is_dir():
        return [folder]
    return sorted(path.parent for path in folder.glob("VOC[0-9][0-9][0-9][0-9]/JPEGImages"))


def _years(root: Path) -> list[Path]:
    found = _year_folders(root) or _year_folders(root / "VOCdevkit")
    if not found:
        raise ValueError(f"{root / 'VOCdevkit'} holds no VOC<year> folder with JPEGImages")
    return found


def _entries(year: Path, split: Split) -> list[_Entry]:
    lists = [year / "ImageSets" / task / f"{split}.txt" for task in ("Main", "Segmentation")]
    listed = next((path for path in lists if path.is_file()), None)
    if listed is None:
        return []
    try:
        lines = listed.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{listed} is no list of names of images ({error})") from error
    names = sorted({line.split()[0] for line in lines if line.strip()})
    files = {
        Path(path.name).stem: path.name
        for path in (year / "JPEGImages").iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES
    }
    return [_Entry(year, name, files.get(name, f"{name}.jpg")) for name in names]


def _annotation(entry: _Entry) -> Path:
    return entry.year / "Annotations" / f"{entry.name}.xml"


def _mask(entry: _Entry) -> Path:
    return entry.year / "SegmentationClass" / f"{entry.name}.png"


def _class_names(years: Sequence[Path], found: set[str]) -> list[str]:
    files = [path.name for year in years for path in (year / "ImageSets" / "Main").glob("*.txt")]
    listed = {match[1] for name in files if (match := _CLASS_LIST.fullmatch(name))}
    if listed:
        return sorted(listed)
    return sorted(found) if found - set(CLASS_NAMES) else list(CLASS_NAMES)


def _boxes(path: Path) -> list[tuple[str, list[float]]]:
    """Class and half-open x0 y0 x1 y1 of each object, from the file's pixels counted from 1, both ends inclusive."""
    if not path.exists():
        return []  # as of the test images
    try:
        objects = ElementTree.parse(path).getroot().findall("object")
    except (ElementTree.ParseError, OSError, ValueError) as error:
        raise ValueError(f"{path} is not valid XML ({error})") from error
    boxes = []
    for number, entry in enumerate(objects):
        # Not `iter`: the parts of a person (head, hands) are objects of their own inside it.
        name, box = entry.findtext("name", "").strip(), entry.find("bndbox")
        texts = [box.findtext(side, "") if box is not None else "" for side in ("xmin", "ymin", "xmax", "ymax")]
        try:
            x0, y0, x1, y1 = map(float, texts)  # some of VOC2011 and VOC2012 are no whole numbers
        except ValueError:
            x0 = y0 = x1 = y1 = np.nan
        if not name or not (-np.inf < x0 <= x1 < np.inf and -np.inf < y0 <= y1 < np.inf):
            raise ValueError(f"{path}: object {number} needs a name and a bndbox of xmin ymin xmax ymax, has {texts}")
        boxes.append((name, [x0 - 1, y0 - 1, x1, y1]))
    return boxes


def _size(path: Path) -> tuple[int, int]:
    """Height and width, as decode_image gives them; the file's head alone is read. 1 x 1 where it is unreadable."""
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(0x0112) in _TURNED
            return (image.width, image.height) if turned else (image.height, image.width)
    except Exception:  # a decoder that is fed a damaged file may raise anything; such an image is not stored
        return (1, 1)


def _segments(path: Path, size: tuple[int, int], num_classes: int) -> tuple[list[dict[str, Any]], list[int]]:
    """Run lengths and class of each class in a mask of `size`; none where there is no mask."""
    if not path.exists() or size == (1, 1):
        return [], []
    try:
        with Image.open(path) as image:
            mode, labels = image.mode, np.asarray(image)
    except Exception as error:
        raise UnreadableImage(f"{path} cannot be read as an image ({type(error).__name__}: {error})") from error
    if mode not in ("P", "L") or labels.shape != size:
        raise ValueError(
            f"{path} is {mode} of {labels.shape[:2]} (height, width): a mask holds the numbers of classes (P or L) "
            f"at the size of its image, {size}"
        )
    present = [int(label) for label in np.unique(labels) if label not in (0, IGNORED)]
    if present and present[-1] > num_classes:
        raise ValueError(f"{path} has the class {present[-1]}, but there are {num_classes}")
    masks = Masks.of([[labels == label for label in present]])
    return encode(masks, Views.of([size]), size=size).segments(), [label - 1 for label in present]
