"""Case of sgdm/annotate: clusters, boxes and features, each against what one would write or take otherwise."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.annotate_boxes import boxes
from benchmarks.annotate_clusters import clusters
from benchmarks.annotate_features import features
from benchmarks.comparison import Comparison


def annotate(device: torch.device, quick: bool) -> Iterator[Comparison]:
    for part in (clusters, boxes, features):
        yield from part(device, quick)
