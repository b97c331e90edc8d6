"""Writers of the COCO and the Pascal VOC format, for images whose objects are known pixel by pixel."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from sgdm.files import write_json

JPEG_QUALITY = 95
SPLITS = ("train", "val")


class CocoWriter:
    """annotations/instances_<split>.json, and the images as PNG in <split>/. `notice` tells the licence."""

    def __init__(self, folder: Path, class_names: Sequence[str], notice: str) -> None:
        self._notice = notice
        self._folder = folder
        self._class_names = class_names
        self._images: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self._annotations: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self._objects = 0

    def add(self, split: str, number: int, image: np.ndarray, masks: np.ndarray, class_ids: Sequence[int]) -> None:
        """`image` uint8 [H, W, 3], `masks` bool [M, H, W], not empty and without overlap, `class_ids` M."""
        file_name = f"{number:012d}.png"
        (self._folder / split).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(self._folder / split / file_name)
        height, width = image.shape[:2]
        self._images[split].append(
            {"id": number, "file_name": file_name, "height": height, "width": width, "license": 1}
        )
        for mask, class_id in zip(masks, class_ids, strict=True):
            self._objects += 1
            x0, y0, x1, y1 = bounding_box(mask)
            self._annotations[split].append(
                {
                    "id": self._objects,
                    "image_id": number,
                    "category_id": class_id + 1,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": int(mask.sum()),
                    "iscrowd": 0,
                    "segmentation": coco_segmentation(mask),
                }
            )

    def finish(self) -> None:
        for split, images in self._images.items():
            write_json(
                self._folder / "annotations" / f"instances_{split}.json",
                {
                    "info": {"description": self._notice},
                    "licenses": [{"id": 1, "name": self._notice}],
                    "images": images,
                    "annotations": self._annotations[split],
                    "categories": [{"id": i + 1, "name": name} for i, name in enumerate(self._class_names)],
                },
            )


class VocWriter:
    """One year's folder. Its masks have no contour of 255 around objects: all of their pixels are known."""

    def __init__(self, folder: Path, class_names: Sequence[str]) -> None:
        self._folder = folder
        self._class_names = class_names
        self._classes_of: dict[str, dict[str, set[int]]] = {split: {} for split in SPLITS}
        for name in ("JPEGImages", "Annotations", "SegmentationClass", "SegmentationObject"):
            (folder / name).mkdir(parents=True)

    def add(self, split: str, number: int, image: np.ndarray, masks: np.ndarray, class_ids: Sequence[int]) -> None:
        """As CocoWriter.add."""
        name = f"{number:06d}"
        Image.fromarray(image).save(
            self._folder / "JPEGImages" / f"{name}.jpg", quality=JPEG_QUALITY, subsampling="4:4:4"
        )
        objects = np.arange(1, len(masks) + 1)
        for kind, labels in (("Class", np.add(class_ids, 1)), ("Object", objects)):
            values = (masks * labels[:, None, None]).sum(axis=0)
            picture = Image.fromarray(values.astype(np.uint8)).convert("P")
            picture.putpalette(voc_palette().tobytes())
            picture.save(self._folder / f"Segmentation{kind}" / f"{name}.png")
        tree = self._annotation(f"{name}.jpg", masks, class_ids)
        ElementTree.indent(tree)
        ElementTree.ElementTree(tree).write(self._folder / "Annotations" / f"{name}.xml", encoding="unicode")
        self._classes_of[split][name] = set(class_ids)

    def _annotation(self, file_name: str, masks: np.ndarray, class_ids: Sequence[int]) -> ElementTree.Element:
        root = ElementTree.Element("annotation")
        _add_texts(root, folder=self._folder.name, filename=file_name)
        height, width = masks.shape[1:]
        _add_texts(ElementTree.SubElement(root, "size"), width=width, height=height, depth=3)
        _add_texts(root, segmented=1)
        for mask, class_id in zip(masks, class_ids, strict=True):
            entry = ElementTree.SubElement(root, "object")
            _add_texts(entry, name=self._class_names[class_id], pose="Unspecified", truncated=0, difficult=0)
            x0, y0, x1, y1 = bounding_box(mask)
            # Pixels are counted from 1 there, and the last one is inside.
            _add_texts(ElementTree.SubElement(entry, "bndbox"), xmin=x0 + 1, ymin=y0 + 1, xmax=x1, ymax=y1)
        return root

    def finish(self) -> None:
        """Writes the lists of images: of each split, and in each split of each class (1 or -1)."""
        sets = {**self._classes_of, "trainval": {k: v for split in SPLITS for k, v in self._classes_of[split].items()}}
        for split, classes_of in sets.items():
            if classes_of:
                for task in ("Main", "Segmentation"):
                    self._write_list(task, split, list(classes_of))
                for class_id, class_name in enumerate(self._class_names):
                    lines = [f"{name} {1 if class_id in ids else -1:2d}" for name, ids in classes_of.items()]
                    self._write_list("Main", f"{class_name}_{split}", lines)

    def _write_list(self, task: str, name: str, lines: list[str]) -> None:
        path = self._folder / "ImageSets" / task / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _add_texts(parent: ElementTree.Element, **texts: str | int) -> None:
    for tag, text in texts.items():
        ElementTree.SubElement(parent, tag).text = str(text)


def voc_palette() -> np.ndarray:
    """uint8 [256, 3], VOC's colours: the bits of a label go to red, green and blue in turn, the lowest ones first."""
    labels = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            if 3 * bit + channel < 8:
                colours[:, channel] |= ((labels >> (3 * bit + channel) & 1) << (7 - bit)).astype(np.uint8)
    return colours


def bounding_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Half-open x0 y0 x1 y1 of a bool mask [H, W] that is not empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def coco_segmentation(mask: np.ndarray) -> list[list[int]] | dict[str, Any]:
    """Polygons that are drawn as exactly this mask; counts where it has a hole, for which polygons have no way."""
    loops = outlines(mask)
    if all(_clockwise(loop) for loop in loops):
        return [np.ravel(loop).tolist() for loop in loops]
    edges = np.flatnonzero(np.diff(mask.ravel(order="F"), prepend=False)).tolist()
    return {"size": list(mask.shape), "counts": np.diff([0, *edges, mask.size]).tolist()}


def outlines(mask: np.ndarray) -> list[list[tuple[int, int]]]:
    """Closed loops x y along the edges of pixels around a bool mask [H, W]: clockwise outside, the others around holes.

    Only corners are named. Pixels that touch at a corner alone are on two loops.
    """
    padded = np.pad(mask, 1)
    inside = padded[1:-1, 1:-1]
    sides = (  # neighbour outside, where the edge starts from the pixel's corner, its step: inside is to the right
        (padded[:-2, 1:-1], (0, 0), (1, 0)),
        (padded[1:-1, 2:], (1, 0), (0, 1)),
        (padded[2:, 1:-1], (1, 1), (-1, 0)),
        (padded[1:-1, :-2], (0, 1), (0, -1)),
    )
    remaining = {
        (x + right, y + down, *step): None  # a dictionary, as sets have no order
        for neighbour, (right, down), step in sides
        for y, x in np.argwhere(inside & ~neighbour).tolist()
    }
    loops = []
    while remaining:
        loop: list[tuple[int, int]] = []
        first = edge = next(iter(remaining))
        while not loop or edge != first:
            del remaining[edge]
            x, y, dx, dy = edge
            x, y = x + dx, y + dy
            # Where two loops meet at a corner, the right turn stays with the pixel.
            ways = ((x, y, -dy, dx), (x, y, dx, dy), (x, y, dy, -dx))
            edge = next(way for way in ways if way in remaining or way == first)
            if edge[2:] != (dx, dy):
                loop.append((x, y))
        loops.append(loop)
    return loops


def _clockwise(loop: Sequence[tuple[int, int]]) -> bool:
    """By twice the area inside, with y downwards."""
    x, y = np.array(loop).T
    return bool(np.dot(x, np.roll(y, -1)) > np.dot(np.roll(x, -1), y))
