"""`python -m benchmarks.scaling --out FILE.json`: how time and memory of the clusters grow with the number of images.

Synthetic features, 768 float16 numbers an image, lie in .npy files. For each number of images, a process of its own
fits K = 100 and K = 1,000 clusters on the same number of them and assigns all in one pass. Time must grow in proportion
to the images at most, and memory not at all, but for 4 bytes an image and K. Time is given by the clock and as computed
by the process's threads together: the second is what others on the machine change little.

Pages of a mapped file count as resident memory of the process that reads them, though they are the system's cache and
go whenever memory is needed. So beside the peak of all resident memory there is that of the process's own (RssAnon of
/proc/self/status, sampled every 20 ms).
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import tyro

from benchmarks.machine import describe
from engine.telemetry import errors, say
from sgdm.annotate.clusters import fit_clusters
from sgdm.files import write_json

DIMENSION = 768
GROUPS = 2000
NUM_CLUSTERS = (100, 1000)
ITERATIONS = 20
BLOCK = 10_000
MOST_MEMORY_GROWTH = 64e6
"""Bytes, beyond those of the ids, that the largest number of images may hold more than the one before."""
MOST_TIME_GROWTH = 1.5
"""Of the time an image at the largest number over that at the one before; 1 is in proportion."""


@dataclass(frozen=True)
class Arguments:
    """Time and memory of fitting and assigning clusters, against the number of images."""

    out: Annotated[Path, tyro.conf.arg(metavar="FILE.json")]
    """Where the figures go."""
    counts: tuple[int, ...] = (10_000, 60_000, 500_000)
    """Numbers of images, two or more, ascending; all but the first should be more than a block."""
    sample: int = 10_000
    """Features that centroids are fitted on, the same for every number of images."""


def main(arguments: list[str] | None = None) -> None:
    parsed = tyro.cli(Arguments, prog="python -m benchmarks.scaling", args=arguments)
    rows = []
    say(f"{'images':>10}{'fit':>9}{'CPU':>8}{'pass':>9}{'CPU':>8}{'repair':>9}{'own MB':>8}{'all MB':>8}  repaired")
    with tempfile.TemporaryDirectory() as folder:
        for count in parsed.counts:
            path = Path(folder) / f"{count}.npy"
            write_mixture(path, count)
            row = in_own_process(cluster, path, parsed.sample)
            path.unlink()
            rows.append(row)
            fit, once = row["fit"], row["pass"]
            say(
                f"{count:10,}{fit['seconds']:7.1f} s{fit['cpu_seconds']:8.1f}{once['seconds']:7.1f} s"
                f"{once['cpu_seconds']:8.1f}{row['repair']['seconds']:7.1f} s{row['own_bytes'] / 1e6:8.0f}"
                f"{row['resident_bytes'] / 1e6:8.0f}  {row['repaired']}"
            )
    report = describe(torch.device("cpu")) | {
        "dimension": DIMENSION,
        "num_clusters": NUM_CLUSTERS,
        "iterations": ITERATIONS,
        "sample": parsed.sample,
        "rows": rows,
    }
    write_json(parsed.out, report)
    problems = check(rows)
    for problem in problems:
        errors.print(f"benchmarks.scaling: {problem}", markup=False)
    say(f"All figures: {parsed.out.resolve()}")
    if problems:
        sys.exit(1)


def check(rows: list[dict[str, Any]]) -> list[str]:
    """What grows more than it may, in words."""
    problems = []
    before, largest = rows[-2:]
    of_ids = 4 * len(NUM_CLUSTERS) * (largest["images"] - before["images"])
    growth = largest["own_bytes"] - before["own_bytes"] - of_ids
    if growth > MOST_MEMORY_GROWTH:
        problems.append(f"memory grows by {growth / 1e6:.0f} MB beyond the ids: something keeps what it should not")
    per_image = [row["pass"]["cpu_seconds"] / row["images"] for row in (before, largest)]
    if per_image[1] > MOST_TIME_GROWTH * per_image[0]:
        problems.append(f"an image takes {per_image[1] / per_image[0]:.1f} times as long where there are more of them")
    return problems


def cluster(path: Path, sample: int) -> dict[str, Any]:
    """Fits and assigns the features at `path`."""
    features = np.load(path, mmap_mode="r")
    fitted: list[Moment] = []
    passed: list[Moment] = []

    def note(rows: np.ndarray, centroids: np.ndarray) -> np.ndarray:
        fitted.append(now())  # centroids as they are: this is where their fitting ends
        return centroids

    with peak_memory() as memory:
        start = now()
        clusters = fit_clusters(
            features,
            NUM_CLUSTERS,
            seed=0,
            iterations=ITERATIONS,
            sample_size=sample,
            refine=note,
            advance=lambda images: passed.append(now()),
        )
        end = now()
    moments = [start, fitted[-1], passed[-1], end]
    spans = zip(("fit", "pass", "repair"), pairwise(moments), strict=True)
    return {
        "images": len(features),
        **{name: {"seconds": b.clock - a.clock, "cpu_seconds": b.cpu - a.cpu} for name, (a, b) in spans},
        "repaired": [each.repaired for each in clusters],
        **memory,
    }


class Moment(NamedTuple):
    clock: float  # seconds
    cpu: float  # seconds that the process computed, all threads together


def now() -> Moment:
    return Moment(time.perf_counter(), time.process_time())


@contextmanager
def peak_memory() -> Iterator[dict[str, int]]:
    """Fills its dictionary, at the end, with the most memory held in between, what was held before included."""
    peak: dict[str, int] = {}
    held, over = {"own_bytes": 0, "resident_bytes": 0}, threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            for name, size in resident().items():
                held[name] = max(held[name], size)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()
        peak |= held


def resident() -> dict[str, int]:
    """Bytes of physical memory: the process's own, and all of them, pages of mapped files included."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        name: int(status[field].split()[0]) * 1024
        for name, field in (("own_bytes", "RssAnon"), ("resident_bytes", "VmRSS"))
    }


def in_own_process(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """What the function returns in a new process, which holds nothing of those before."""
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def write_mixture(path: Path, count: int) -> None:
    """float16 [count, 768] around random directions, a block in memory at a time."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((GROUPS, DIMENSION), np.float32)
    rows = np.lib.format.open_memmap(path, "w+", np.float16, (count, DIMENSION))
    for start in range(0, count, BLOCK):
        block = rows[start : start + BLOCK]
        noise = random.standard_normal(block.shape, np.float32)
        block[:] = centres[random.integers(0, GROUPS, len(block))] + noise
    rows.flush()


if __name__ == "__main__":
    main()
