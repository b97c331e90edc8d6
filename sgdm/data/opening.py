"""Which source a specification means."""

from __future__ import annotations

from pathlib import Path

from sgdm.data.coco import CocoFolder, is_coco
from sgdm.data.sources import FASHION_MNIST_DEBIAN_FOLDER, FashionMNIST, ImageFolder, Source, Split
from sgdm.data.voc import VocFolder, is_voc


def open_source(specification: str, split: Split, cache: Path | None = None) -> Source:
    """`fashion-mnist`, or the path of a folder, whose content tells what it is.

    With annotations/instances_*.json it is COCO; with VOCdevkit, VOC<year>/JPEGImages or JPEGImages and Annotations
    it is Pascal VOC; else a folder of images. There train/ and val/ (or nothing but train/ and test/) hold splits;
    any other is all train. `cache` is where data sets are downloaded to, by default ~/.cache/sgdm. ValueError says
    what is missing.
    """
    if split not in ("train", "val"):
        raise ValueError(f"there is no split {split!r}: choose train or val")
    if specification == FashionMNIST.name:
        cache = cache or Path.home() / ".cache" / "sgdm"
        return FashionMNIST(split, [FASHION_MNIST_DEBIAN_FOLDER, cache / FashionMNIST.name])
    folder = Path(specification).expanduser()
    if is_coco(folder):
        return CocoFolder(folder, split)
    if is_voc(folder):
        return VocFolder(folder, split)
    return ImageFolder(folder, split)
