"""Case of csrc/: masks at 64 pixels from annotations in COCO's manner, one thread each unless the name says more.

pycocotools and the NumPy twin draw the same bytes. OpenCV and Pillow sample the same or nearly the same source pixels
of run lengths, but fill other pixels of polygons: the edge too, from vertices that OpenCV rounds to whole pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from benchmarks.comparison import Comparison, Step
from sgdm import raster_numpy
from sgdm.ragged import Objects, Polygons, RunLengths, Views
from sgdm.raster import encode, rasterize_labels, rasterize_mask

CPU = torch.device("cpu")
SOURCE = (480, 640)
TARGET = (64, 64)
CLASSES = 80
Make = Callable[[], Step]


@dataclass(frozen=True)
class Work:
    """Annotations with one view of all of each image."""

    annotations: Objects
    views: Views

    def labels(self, threads: int) -> Step:
        out = torch.empty(self.annotations.num_images, *TARGET, dtype=torch.uint8)
        draw = partial(rasterize_labels, self.annotations, self.views, out, num_classes=CLASSES)
        return partial(draw, threads=threads)

    def masks(self) -> Step:
        out = torch.empty(self.annotations.num_images, 1, *TARGET, dtype=torch.uint8)
        return partial(rasterize_mask, self.annotations, self.views, out)

    def twin(self) -> Step:
        return partial(raster_numpy.rasterize_mask, self.annotations, self.views, TARGET)


def raster(device: torch.device, quick: bool) -> Iterator[Comparison]:
    """On the CPU, whatever the device."""
    yield _run_lengths(4 if quick else 64)
    yield _polygons(16 if quick else 1024)
    yield _batch(4 if quick else 256)


def _run_lengths(images: int) -> Comparison:
    work = segments(images, 1)
    rows, columns = (((2 * np.arange(n) + 1) * size) // (2 * n) for size, n in zip(SOURCE, TARGET, strict=True))
    height, width = TARGET
    return Comparison(
        f"{images} run lengths of 480x640 to 64x64 masks",
        {
            "pycocotools": partial(_decoded, work, lambda mask: mask[rows][:, columns]),
            "pycocotools, OpenCV": partial(_resized_by_opencv, work),
            "pycocotools, Pillow": partial(
                _decoded,
                work,
                lambda mask: np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST)),
            ),
            "NumPy twin": work.twin,
            "sgdm": work.masks,
        },
        CPU,
        images=images,
    )


def _polygons(images: int) -> Comparison:
    work = Work(polygons(images, 1, TARGET, points=12, radius=(4.0, 8.0)), _whole(images, TARGET))
    assert isinstance(work.annotations, Polygons)
    outlines = np.split(work.annotations.coordinates, work.annotations.part_offsets[1:-1])
    return Comparison(
        f"{images} polygons of 12 points to 64x64 masks",
        {
            "pycocotools": partial(_filled_by_pycocotools, outlines),
            "OpenCV": partial(_filled_by_opencv, outlines),
            "Pillow": partial(_filled_by_pillow, outlines),
            "NumPy twin": work.twin,
            "sgdm": work.masks,
        },
        CPU,
        images=images,
    )


def _batch(images: int) -> Comparison:
    work = segments(images, 8)
    return Comparison(
        f"{images} images of 8 run lengths to 64x64 label maps",
        {
            "pycocotools": partial(_labels_by_pycocotools, work),
            "sgdm": partial(work.labels, 1),
            "sgdm, 2 threads": partial(work.labels, 2),
        },
        CPU,
        images=images,
    )


def polygons(images: int, objects: int, size: tuple[int, int], points: int, radius: tuple[float, float]) -> Polygons:
    """Stars around a random centre: `objects` in each image of `size`, of random classes."""
    rng = np.random.default_rng(0)
    count = images * objects
    angles = np.sort(rng.uniform(0, 2 * np.pi, (count, points)), axis=1)
    radii = rng.uniform(*radius, (count, 1)) * rng.uniform(0.5, 1, (count, points))
    directions = np.stack([np.cos(angles), np.sin(angles)], axis=2)
    centres = rng.uniform(0.2, 0.8, (count, 1, 2)) * size[::-1]
    return Polygons(
        coordinates=(centres + radii[..., None] * directions).ravel(),
        part_offsets=np.arange(count + 1) * 2 * points,
        object_offsets=np.arange(count + 1),
        image_offsets=np.arange(images + 1) * objects,
        class_ids=rng.integers(0, CLASSES, count, dtype=np.int32),
    )


def segments(images: int, objects: int) -> Work:
    """Run lengths of objects of all sizes, some 500 characters each."""
    views = _whole(images, SOURCE)
    shapes = polygons(images, objects, SOURCE, points=24, radius=(20.0, 200.0))
    return Work(encode(shapes, views, size=SOURCE), views)


def _whole(images: int, size: tuple[int, int]) -> Views:
    return Views.of(np.tile(size, (images, 1)))


def _decoded(work: Work, sample: Callable[[Any], Any]) -> Callable[[], list[np.ndarray]]:
    from pycocotools import mask as coco

    assert isinstance(work.annotations, RunLengths)
    found = work.annotations.segments()
    return lambda: [sample(coco.decode(segment)) for segment in found]


def _resized_by_opencv(work: Work) -> Step:
    import cv2

    cv2.setNumThreads(1)
    height, width = TARGET
    return _decoded(work, lambda mask: cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT))


def _filled_by_pycocotools(outlines: list[np.ndarray]) -> Step:
    from pycocotools import mask as coco

    lists = [outline.tolist() for outline in outlines]
    return lambda: [coco.decode(coco.frPyObjects([coordinates], *TARGET))[:, :, 0] for coordinates in lists]


def _filled_by_opencv(outlines: list[np.ndarray]) -> Step:
    import cv2

    cv2.setNumThreads(1)
    corners = [np.round(outline.reshape(-1, 2)).astype(np.int32) for outline in outlines]
    return lambda: [cv2.fillPoly(np.zeros(TARGET, np.uint8), [points], 1) for points in corners]


def _filled_by_pillow(outlines: list[np.ndarray]) -> Step:
    lists = [outline.tolist() for outline in outlines]

    def fill(coordinates: list[float]) -> np.ndarray:
        image = Image.new("L", TARGET[::-1])
        ImageDraw.Draw(image).polygon(coordinates, fill=1)
        return np.asarray(image)

    return lambda: [fill(coordinates) for coordinates in lists]


def _labels_by_pycocotools(work: Work) -> Step:
    rows, columns = (((2 * np.arange(n) + 1) * size) // (2 * n) for size, n in zip(SOURCE, TARGET, strict=True))
    decode = _decoded(work, lambda mask: mask[rows][:, columns])
    objects = work.annotations

    def draw() -> np.ndarray:
        labels = np.full((objects.num_images, *TARGET), 255, np.uint8)
        masks = decode()
        for image, plane in enumerate(labels):
            for number in range(*objects.image_offsets[image : image + 2]):
                plane[masks[number] != 0] = objects.class_ids[number]
        return labels

    return draw
