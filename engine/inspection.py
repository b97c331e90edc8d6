"""`sgdm annotate --inspect`: what annotates the images, drawn over them in a page with paging and search.

The folder inspect/ of a run holds index.html, which works from file:// and loads nothing but what lies beside it:

data.js                  const DATA = {...}, see page_data
images-NNN.jpg           images side by side, `columns` a line and `tiles` a sheet, in the order of DATA.rows
LAYER-NNN.png            label maps in the same places: pixels are classes, the palette their colours, 255 transparent
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from engine import distributed, telemetry
from engine.config import Config
from engine.evidence import is_number
from engine.pages import render
from engine.prepare import KINDS, truth_folder
from engine.sheets import class_colours
from sgdm.annotate.cluster_set import ClusterSet, load_clusters
from sgdm.annotate.layout import Layout, load_layout
from sgdm.annotate.sets import MANIFEST
from sgdm.data.beton import DataManifest, check_beton
from sgdm.data.guides import NO_CLASS
from sgdm.data.loader import Loader
from sgdm.ragged import Boxes, Views
from sgdm.raster import rasterize_labels

MOST_IMAGES = 10_000
"""A page shows at most so many, or one a cluster."""
SHEET_SIDE = 1024
"""Pixels: a sheet is some hundred kilobytes."""
LARGEST_TILE = 128
"""Pixels; larger images are reduced to it."""
QUALITY = 92
"""Of JPEG, with full colour resolution: tiles whose side is a multiple of 8 do not bleed into each other."""

CLUSTER_FIGURES = {"purity": "Purity", "nmi": "Normalised mutual information", "ari": "Adjusted Rand index"}


class Annotation(NamedTuple):
    """What a configuration's annotation holds, and what it is compared with."""

    data: DataManifest
    clusters: ClusterSet | None
    found: Layout | None
    truth: list[Layout]


def run(config: Config) -> None:
    annotation = load_annotation(config)
    ranks = distributed.join()
    if ranks.first:
        with replaced(config.run / "inspect") as folder:
            shown = write_page(config, annotation, folder)
        page = (config.run / "inspect" / "index.html").resolve()
        telemetry.say(f"inspect: {shown:,} of {annotation.data.count:,} images -> {page}")
    ranks.wait()


def load_annotation(config: Config) -> Annotation:
    """ValueError where the configuration has no annotation; AnnotationError where it is not there yet."""
    wanted = config.annotation
    if wanted.num_clusters == 0 and wanted.layout == "none":
        raise ValueError(
            "annotation.num_clusters is 0 and annotation.layout none, so nothing annotates the images: give what they "
            "were annotated with, such as --annotation.num-clusters 100"
        )
    path = config.data.folder / "train.beton"
    data = check_beton(path)
    truth = [truth_folder(path, kind) for kind in KINDS]
    return Annotation(
        data,
        load_clusters(config.clusters_folder, data.digest) if wanted.num_clusters else None,
        load_layout(config.layout_folder, data.digest) if wanted.layout != "none" else None,
        [load_layout(folder, data.digest) for folder in truth if (folder / MANIFEST).is_file()],
    )


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """Yields an empty folder that takes the place of `folder` when all is written, so that none shows half of it."""
    partial, old = (folder.with_name(f".{folder.name}.{state}") for state in ("partial", "old"))
    for left in (partial, old):  # by a kill
        shutil.rmtree(left, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
    finally:
        for left in (partial, old):
            shutil.rmtree(left, ignore_errors=True)


def write_page(config: Config, annotation: Annotation, folder: Path) -> int:
    """Writes the page into an empty folder and returns how many images it shows."""
    data, clusters = annotation.data, annotation.clusters
    side = min(data.image_size, LARGEST_TILE)
    columns = SHEET_SIDE // side
    tiles = columns * columns
    rows = choose_rows(data.count, clusters)
    layers = {f"true-{layout.manifest.kind}": layout for layout in annotation.truth}
    if annotation.found is not None:
        layers = {annotation.found.manifest.kind: annotation.found} | layers
    loader = Loader(config.data.folder / "train.beton", batch_size=tiles, device="cpu", seed=config.seed)
    with telemetry.progress("inspect", len(rows)) as advance:
        for number, batch in enumerate(loader.select(rows)):
            pixels = batch.image.permute(0, 2, 3, 1).numpy()
            sheet = tiled(np.stack([_reduced(image, side) for image in pixels]), columns)
            Image.fromarray(sheet).save(folder / f"images-{number:03}.jpg", quality=QUALITY, subsampling=0)
            for key, layout in layers.items():
                if not isinstance(layout.objects, Boxes):
                    maps = label_maps(layout, batch.rows.numpy(), data.image_size, side)
                    _save_labels(folder / f"{key}-{number:03}.png", tiled(maps, columns, NO_CLASS))
            advance(len(pixels))
    values = page_data(annotation, layers, rows, loader.labels) | {"side": side, "columns": columns, "tiles": tiles}
    (folder / "data.js").write_text(f"const DATA = {json.dumps(values, separators=(',', ':'))};\n", encoding="utf-8")
    shutil.copy(Path(__file__).with_suffix(".js"), folder)
    has_labels = values["labels"] is not None
    compared = {"labels": has_labels and not is_of_labels(annotation), "truth": bool(annotation.truth)}
    page = render(
        "inspection_template.html",
        run=config.run.resolve().name,
        annotation=annotation,
        shown=len(rows),
        figures=figures(annotation),
        has_labels=has_labels,
        compared=[name for name, shown in compared.items() if shown],
    )
    (folder / "index.html").write_text(page, encoding="utf-8")
    return len(rows)


def choose_rows(count: int, clusters: ClusterSet | None) -> NDArray[np.int64]:
    """int64 [n]: the images to show, those of a cluster side by side.

    All of them; or images evenly spread over the set and, of every cluster, those nearest to the centroid, which take
    at most half of the places, or one a cluster.
    """
    rows = np.arange(count)
    if count > MOST_IMAGES:
        galleries = np.zeros(0, np.int64)
        if clusters is not None and clusters.nearest.size:
            depth = max(1, MOST_IMAGES // 2 // len(clusters.nearest))
            galleries = np.setdiff1d(clusters.nearest[:, :depth], [-1])
        spread = np.linspace(0, count - 1, max(0, MOST_IMAGES - len(galleries))).astype(np.int64)
        rows = np.union1d(galleries, spread)
    return rows if clusters is None else rows[np.argsort(clusters.clusters[rows], kind="stable")]


def page_data(
    annotation: Annotation, layers: Mapping[str, Layout], rows: NDArray[np.int64], labels: NDArray[np.int64]
) -> dict[str, Any]:
    """What the page knows of the images `rows`, in their order; labels, int64 [N], are those of all images."""
    clusters, names = annotation.clusters, annotation.data.label_names
    has_labels = bool((labels >= 0).any())
    return {
        "count": annotation.data.count,
        "rows": rows.tolist(),
        "clusters": _cluster_data(clusters, rows, labels if has_labels else None) if clusters else None,
        "labels": {"names": names, "of": labels[rows].tolist()} if has_labels else None,
        "layers": [
            {
                "key": key,
                "kind": layout.manifest.kind,
                "truth": layout.manifest.method == "truth",
                "classes": layout.manifest.class_names,
                "boxes": _box_data(layout.objects, rows) if isinstance(layout.objects, Boxes) else None,
            }
            for key, layout in layers.items()
        ],
        "colours": [f"#{bytes(colour).hex()}" for colour in class_colours()],
    }


def _cluster_data(clusters: ClusterSet, rows: NDArray[np.int64], labels: NDArray[np.int64] | None) -> dict[str, Any]:
    """The cluster of each image; of each cluster the size, the images nearest to its centroid, and the label that most
    of its labelled images have with the share that have it, null where none has a label."""
    num_clusters, shown = clusters.manifest.num_clusters, set(rows.tolist())
    found: dict[str, Any] = {
        "of": clusters.clusters[rows].tolist(),
        "sizes": np.bincount(clusters.clusters, minlength=num_clusters).tolist(),
        "galleries": [[row for row in gallery if row in shown] for gallery in clusters.nearest.tolist()],
    }
    if labels is not None:
        num_labels, labelled = labels.max() + 1, labels >= 0
        pairs = clusters.clusters[labelled].astype(np.int64) * num_labels + labels[labelled]
        counts = np.bincount(pairs, minlength=num_clusters * num_labels).reshape(num_clusters, num_labels)
        found["commonest"] = [
            [int(row.argmax()), round(row.max() / row.sum(), 4)] if row.any() else None for row in counts
        ]
    return found


def _box_data(boxes: Boxes, rows: NDArray[np.int64]) -> list[list[list[float]]]:
    """Of each image its boxes, class x0 y0 x1 y1; the corners from 0 to 1, to four decimals."""
    found = []
    for row in rows:
        objects = slice(*boxes.image_offsets[row : row + 2])
        corners = boxes.corners[objects].round(4).tolist()
        found.append([[c, *box] for c, box in zip(boxes.class_ids[objects].tolist(), corners, strict=True)])
    return found


def label_maps(layout: Layout, rows: NDArray[np.int64], image_size: int, side: int) -> NDArray[np.uint8]:
    """uint8 [n, side, side]: the segments of the images `rows`, NO_CLASS where there is none."""
    maps = torch.empty(len(rows), side, side, dtype=torch.uint8)
    views = Views.of(np.full((len(rows), 2), image_size))
    rasterize_labels(
        layout.objects, views, maps, num_classes=layout.manifest.num_classes, background=NO_CLASS, images=rows
    )
    return maps.numpy()


def tiled(pictures: NDArray[np.uint8], columns: int, paper: int = 255) -> NDArray[np.uint8]:
    """Pictures [n, H, W, ...] side by side, `columns` a line: [lines * H, columns * W, ...]."""
    n, H, W, *channels = pictures.shape
    lines = -(-n // columns)
    sheet = np.full((lines * columns, H, W, *channels), paper, np.uint8)
    sheet[:n] = pictures
    return sheet.reshape(lines, columns, H, W, *channels).swapaxes(1, 2).reshape(lines * H, columns * W, *channels)


def _reduced(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    if len(image) == side:
        return image
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS))


def _save_labels(path: Path, labels: NDArray[np.uint8]) -> None:
    picture = Image.fromarray(labels)
    picture.putpalette(class_colours().tobytes())
    picture.save(path, transparency=bytes([255] * NO_CLASS + [0]), optimize=True)


def figures(annotation: Annotation) -> list[tuple[str, float, str]]:
    """Name and value of what was compared with labels or truth, and what is to be said of that."""
    found = []
    if annotation.clusters is not None:
        report = annotation.clusters.manifest.report
        note = "against the labels it is made of" if is_of_labels(annotation) else "against labels that were not used"
        found += [(name, report[key], note) for key, name in CLUSTER_FIGURES.items() if is_number(report.get(key))]
    if annotation.found is not None:
        report, note = annotation.found.manifest.report, "against truth that was not used"
        found += [(name, value, note) for name, value in report.items() if is_number(value)]
    return found


def is_of_labels(annotation: Annotation) -> bool:
    """Whether the clusters are a control that knows the labels."""
    return annotation.clusters is not None and annotation.clusters.manifest.method in ("labels", "split-labels")
