"""The peers of the raster case draw the same masks, where they can."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.cases import CASES
from benchmarks.comparison import Comparison

EXACT = ("pycocotools", "NumPy twin", "sgdm", "sgdm, 2 threads")


@pytest.fixture(scope="module")
def comparisons() -> list[Comparison]:
    pytest.importorskip("pycocotools")
    return list(CASES["raster"].comparisons(torch.device("cpu"), True))


@pytest.mark.parametrize("number", [0, 1, 2])
def test_peers_draw_the_same(comparisons: list[Comparison], number: int) -> None:
    comparison = comparisons[number]
    drawn: dict[str, Any] = {name: np.asarray(make()()).squeeze() for name, make in comparison.peers.items()}
    shapes = {masks.shape for masks in drawn.values()}
    assert shapes == {(comparison.images, 64, 64)}
    assert drawn["sgdm"].mean() > 0
    for name, masks in drawn.items():
        if name in EXACT:
            np.testing.assert_array_equal(masks, drawn["sgdm"], err_msg=name)
        else:
            assert (masks != drawn["sgdm"]).mean() < 0.02, name
