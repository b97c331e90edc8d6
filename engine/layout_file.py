"""Layouts that a person asks for: the file of `sgdm sample --layout layout.json`.

    {"images": [
        {"cluster": 3, "count": 4, "objects": [{"box": [0.1, 0.2, 0.6, 0.9]}]},
        {"objects": [{"class": 0, "box": [0, 0, 1, 0.2]}, {"class": 5, "polygon": [[0, 1], [1, 1], [0.5, 0.2]]}]}
    ]}

Coordinates go from 0 to 1, right and down, over the image; a box is x0 y0 x1 y1. Later objects lie over earlier ones.
`count` images are drawn of each entry, one if it is left out. A network guided by boxes takes a cluster and no classes,
one guided by segments takes classes and no cluster.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import pydantic
from numpy.typing import NDArray
from pydantic import ConfigDict, Field

from engine.config import Config
from sgdm.ragged import Polygons

Coordinate = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Point = tuple[Coordinate, Coordinate]


class LayoutFileError(ValueError):
    """A layout file that cannot be drawn; the message names the file, the image, the object and the value."""


class _Strict(pydantic.BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Object(_Strict):
    box: tuple[Coordinate, Coordinate, Coordinate, Coordinate] | None = None
    polygon: Annotated[list[Point], Field(min_length=3)] | None = None
    class_id: Annotated[int | None, Field(alias="class", ge=0, strict=True)] = None

    def points(self) -> list[float]:
        """x y x y ... of its outline."""
        if self.polygon is not None:
            return [coordinate for point in self.polygon for coordinate in point]
        assert self.box is not None
        x0, y0, x1, y1 = self.box
        return [x0, y0, x1, y0, x1, y1, x0, y1]


class _Image(_Strict):
    objects: Annotated[list[_Object], Field(min_length=1)]
    cluster: Annotated[int, Field(ge=0, strict=True)] | None = None
    count: Annotated[int, Field(ge=1, strict=True)] = 1


class _File(_Strict):
    images: Annotated[list[_Image], Field(min_length=1)]


class Asked(NamedTuple):
    """Layouts by hand, [M] of them."""

    polygons: Polygons
    """In units of the image, class ids 0 where classes do not guide."""

    clusters: NDArray[np.int64] | None
    """[M]; None where clusters do not guide."""

    counts: NDArray[np.int64]
    """[M], images to draw of each."""


def read_layouts(path: Path, config: Config) -> Asked:
    """LayoutFileError names what is wrong in the file, or does not fit the run's network."""
    if not path.is_file():
        raise LayoutFileError(f"{path} does not exist: give a layout file, as engine/layout_file.py describes it")
    try:
        images = _File.model_validate_json(path.read_bytes()).images
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = " ".join(str(part) for part in first["loc"] if part != "images") or "the file"
        raise LayoutFileError(
            f"{path}: {'image ' if first['loc'][:1] == ('images',) and len(first['loc']) > 1 else ''}{where}: "
            f"{first['msg']} (found {first['input']!r})"
        ) from error
    for number, image in enumerate(images):
        _check_cluster(f"{path}: image {number}", image.cluster, config.annotation.num_clusters)
        for position, thing in enumerate(image.objects):
            _check_object(f"{path}: image {number} objects {position}", thing, config.segments)
    return Asked(
        polygons=Polygons.of(
            [[[thing.points()] for thing in image.objects] for image in images],
            [[thing.class_id or 0 for thing in image.objects] for image in images],
        ),
        clusters=np.array([image.cluster for image in images]) if config.annotation.num_clusters else None,
        counts=np.array([image.count for image in images]),
    )


def _check_cluster(where: str, cluster: int | None, num_clusters: int) -> None:
    if not num_clusters and cluster is not None:
        raise LayoutFileError(f"{where}: cluster is {cluster}, but clusters do not guide this network: leave it out")
    if num_clusters and cluster is None:
        raise LayoutFileError(f"{where}: cluster is missing: give one of 0 to {num_clusters - 1}")
    if cluster is not None and cluster >= num_clusters:
        raise LayoutFileError(f"{where}: cluster is {cluster}: give one of 0 to {num_clusters - 1}")


def _check_object(where: str, thing: _Object, num_segments: int) -> None:
    if (thing.box is None) == (thing.polygon is None):
        raise LayoutFileError(f"{where}: give either a box or a polygon")
    if thing.box is not None and not (thing.box[0] < thing.box[2] and thing.box[1] < thing.box[3]):
        raise LayoutFileError(f"{where}: box is {list(thing.box)}: give x0 y0 x1 y1 with x0 < x1 and y0 < y1")
    if not num_segments and thing.class_id is not None:
        raise LayoutFileError(f"{where}: class is {thing.class_id}, but boxes of this network have none: leave it out")
    if num_segments and thing.class_id is None:
        raise LayoutFileError(f"{where}: class is missing: give one of 0 to {num_segments - 1}")
    if num_segments and thing.class_id is not None and thing.class_id >= num_segments:
        raise LayoutFileError(f"{where}: class is {thing.class_id}: give one of 0 to {num_segments - 1}")
