"""How much work a mask is, in instructions: what a busy machine cannot blur. Counted by valgrind, where it is there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

MASKS = 256

# Without torch, whose import takes minutes under valgrind. Draws a batch of star-shaped objects again and again.
PROGRAM = f"""
import sys
import numpy as np
import sgdm._raster as _raster
from sgdm.ragged import Polygons, RunLengths, Views

kind, repeats = sys.argv[1], int(sys.argv[2])
size, points, radius = ((64, 64), 12, 8) if kind == "polygons" else ((480, 640), 24, 110)
rng = np.random.default_rng(0)
angles = np.sort(rng.uniform(0, 2 * np.pi, ({MASKS}, points)), axis=1)
outlines = np.stack([np.cos(angles), np.sin(angles)], axis=2) * rng.uniform(radius / 2, radius, ({MASKS}, points, 1))
outlines += rng.uniform(0.2, 0.8, ({MASKS}, 1, 2)) * size[::-1]
objects = Polygons.of([[[outline]] for outline in outlines])
batch = Views.of(np.tile(size, ({MASKS}, 1))).batch(np.arange({MASKS}))
if kind == "run_lengths":
    text, offsets = _raster.encode(objects.annotations(), batch, *size)
    objects = RunLengths(values=text, offsets=offsets, sizes=np.tile(size, ({MASKS}, 1)),
                         image_offsets=objects.image_offsets, class_ids=objects.class_ids)
out = np.empty(({MASKS}, 64, 64), np.uint8)
tensor = _raster.Tensor(out.ctypes.data, 1, out.nbytes, list(out.shape), [64 * 64, 64, 1])
output = _raster.labels_output(tensor, 1, 255)
for _ in range(repeats):
    _raster.rasterize(objects.annotations(), batch, output, "last", 1)
"""


def instructions(kind: str, repeats: int, folder: Path) -> int:
    command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={folder / 'callgrind'}"]
    done = subprocess.run(
        [*command, sys.executable, "-c", PROGRAM, kind, str(repeats)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = re.search(r"Collected : (\d+)", done.stderr)
    assert found, done.stderr[-2000:]
    return int(found.group(1))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not shutil.which("valgrind"), reason="valgrind is not installed")
@pytest.mark.parametrize(("kind", "most"), [("polygons", 12_000), ("run_lengths", 45_000)])
def test_instructions_of_a_mask(kind: str, most: int, tmp_path: Path) -> None:
    """A third above what was counted on x86 with AVX2: 8,778 (of which 4,096 clear as many bytes) and 33,356."""
    once, again = (instructions(kind, repeats, tmp_path) for repeats in (2, 12))
    counted = (again - once) / (10 * MASKS)
    assert 1_000 < counted < most, f"{counted:,.0f} instructions a mask"
