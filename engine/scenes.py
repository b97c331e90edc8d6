"""Images whose truth is known exactly, for trying and measuring without a download. A program beside the stages."""

from __future__ import annotations

from pathlib import Path

import tyro

from engine import telemetry
from engine.console import guard
from sgdm.data.scenes import Format, SceneSet, is_written, write_scenes


def run(
    folder: Path = Path("data/scenes"),
    images: int = 5000,
    val_images: int = 500,
    image_size: int = 64,
    seed: int = 0,
    formats: tuple[Format, ...] = ("coco", "voc"),
) -> None:
    """Write images whose truth is known exactly, as folders of the COCO and the Pascal VOC format.

    Drawings of OpenMoji (CC BY-SA 4.0) on varied backgrounds. FOLDER/coco and FOLDER/VOCdevkit are values of
    --data.source. Needs the extra `scenes`.

    Args:
        folder: where to; it must not exist yet
        images: of the train split
        val_images: of the val split
        image_size: width and height in pixels
        seed: the same seed gives the same images
        formats: coco, voc or both
    """
    scenes = SceneSet(images, val_images, image_size, seed, formats)
    if is_written(folder, scenes):
        telemetry.skip("scenes", folder)
        return
    with telemetry.progress("scenes", images + val_images) as advance:
        write_scenes(folder, scenes, advance=advance)
    telemetry.say(f"scenes: done -> {folder} (OpenMoji, CC BY-SA 4.0: see LICENSE.txt there)")


def main(arguments: list[str] | None = None) -> None:
    guard("scenes", lambda: tyro.cli(run, prog="sgdm scenes", args=arguments))


if __name__ == "__main__":
    main()
