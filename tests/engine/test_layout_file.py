"""Layouts by hand: what is asked for, and each mistake in the file by name."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.annotation_config import AnnotationConfig, SegmentsConfig
from engine.config import Config
from engine.layout_file import LayoutFileError, read_layouts
from engine.sheets import layout_lines, layout_sheet
from sgdm.data.guides import Guides

BOXES = AnnotationConfig(num_clusters=3, encoder="pixels", layout="boxes")
SEGMENTS = AnnotationConfig(
    num_clusters=0, encoder="pixels", layout="segments", segments=SegmentsConfig(num_segments=4)
)
BOX = {"box": [0.25, 0.5, 1, 1]}


def read(config: Config, annotation: AnnotationConfig, images: Any, folder: Path) -> Any:
    path = folder / "layout.json"
    path.write_text(images if isinstance(images, str) else json.dumps({"images": images}))
    return read_layouts(path, dataclasses.replace(config, annotation=annotation))


def test_boxes_with_clusters(config: Config, tmp_path: Path) -> None:
    asked = read(
        config, BOXES, [{"cluster": 2, "count": 4, "objects": [BOX]}, {"cluster": 0, "objects": [BOX, BOX]}], tmp_path
    )
    assert asked.clusters.tolist() == [2, 0] and asked.counts.tolist() == [4, 1]
    guides = Guides(asked.clusters, asked.polygons, image_size=8, num_segments=0, device="cpu")
    mask = guides.draw(np.array([0])).layout
    assert mask[0, 0, 4:, 2:].eq(1).all() and mask.sum() == 24


def test_polygons_with_classes(config: Config, tmp_path: Path) -> None:
    triangle = {"class": 3, "polygon": [[0, 0], [1, 0], [0, 1]]}
    asked = read(config, SEGMENTS, [{"objects": [{"class": 1, "box": [0, 0, 1, 1]}, triangle]}], tmp_path)
    assert asked.clusters is None
    guides = Guides(None, asked.polygons, image_size=8, num_segments=4, device="cpu")
    labels = guides.draw(np.array([0])).layout[0]
    assert labels[0, 0] == 3 and labels[7, 7] == 1


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ("{", "Invalid JSON"),
        ([], "at least 1 item"),
        ([{"cluster": 0, "objects": []}], r"image 0 objects: .*at least 1 item"),
        ([{"cluster": 0, "objects": [{}]}], "image 0 objects 0: give either a box or a polygon"),
        ([{"cluster": 0, "objects": [{**BOX, "polygon": [[0, 0], [1, 0], [1, 1]]}]}], "either a box or a polygon"),
        ([{"cluster": 0, "objects": [{"box": [0.5, 0, 0.5, 1]}]}], r"box is \[0.5, 0.0, 0.5, 1.0\]: give x0 y0 x1 y1"),
        ([{"cluster": 0, "objects": [{"box": [0, 0, 64, 64]}]}], r"image 0 objects 0 box 2: .*less than or equal to 1"),
        ([{"cluster": 0, "objects": [{"box": [0, 0, 1]}]}], "image 0 objects 0 box"),
        ([{"cluster": 0, "objects": [{"polygon": [[0, 0], [1, 1]]}]}], "image 0 objects 0 polygon: .*at least 3"),
        ([{"cluster": 0, "objects": [{"circle": 1}]}], "image 0 objects 0 circle: Extra inputs are not permitted"),
        ([{"cluster": 0, "objects": [BOX]}, {"objects": [BOX]}], "image 1: cluster is missing: give one of 0 to 2"),
        ([{"cluster": 3, "objects": [BOX]}], "image 0: cluster is 3: give one of 0 to 2"),
        ([{"cluster": 0, "count": 0, "objects": [BOX]}], "image 0 count"),
        ([{"cluster": 0, "objects": [{**BOX, "class": 1}]}], "class is 1, but boxes of this network have none"),
        ([{"cluster": 0, "objects": [{"box": [0, 0, 1, float("nan")]}]}], "image 0 objects 0 box 3"),
    ],
)
def test_mistakes_for_a_network_guided_by_boxes(config: Config, tmp_path: Path, images: Any, message: str) -> None:
    with pytest.raises(LayoutFileError, match=message) as refusal:
        read(config, BOXES, images, tmp_path)
    assert "layout.json" in str(refusal.value)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([{"objects": [BOX]}], "image 0 objects 0: class is missing: give one of 0 to 3"),
        ([{"objects": [{**BOX, "class": 4}]}], "class is 4: give one of 0 to 3"),
        ([{"cluster": 1, "objects": [{**BOX, "class": 1}]}], "cluster is 1, but clusters do not guide this network"),
    ],
)
def test_mistakes_for_a_network_guided_by_segments(config: Config, tmp_path: Path, images: Any, message: str) -> None:
    with pytest.raises(LayoutFileError, match=message):
        read(config, SEGMENTS, images, tmp_path)


def test_a_missing_file_is_named(config: Config, tmp_path: Path) -> None:
    with pytest.raises(LayoutFileError, match=r"nowhere\.json does not exist"):
        read_layouts(tmp_path / "nowhere.json", config)


def test_a_sheet_has_a_line_for_each_layout() -> None:
    layouts = np.zeros((5, 4, 4), np.uint8)
    layouts[3:] = 1
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    sheet = layout_sheet(layout_lines(layouts, images, np.array([9, 9, 9, 2, 2]), segments=0))
    assert sheet.shape == (4 + 2 + 4, 4 * 4 + 3 * 2, 3)
    assert (sheet[0, 6:10] == 0).all() and (sheet[6, 6:10] == 3).all()  # the first image of each layout
    assert (sheet[6, :4] == 255).all()
