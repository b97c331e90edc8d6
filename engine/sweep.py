"""`sgdm evaluate --sweep.<axis> ...`: which guidance, sampler, steps and average of the weights give the best samples?

RUN/sweep.csv        a row for every point and seed that was measured, of this sweep and of earlier ones
RUN/sweep/grids/     the first images of each
RUN/sweep/batches/   what the point at hand has come to: a kill costs the batch at hand
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from torch import Tensor

from engine import checkpoint, distributed, exports, posthoc, sweep_results, telemetry
from engine.batches import Batches
from engine.config import Config, save_config
from engine.distributed import Ranks
from engine.drawing import Painter, Trained, average_folder, open_run, tracked_decay
from engine.judge import PICTURES, Judge
from engine.points import Point, axes, label_of, point_at, points, protocol_of, seeds
from engine.run_lock import run_lock
from engine.search import coarse_to_fine
from engine.subjects import choose_subjects, describe_subjects, tell
from sgdm.diffusion.guidance import UNGUIDED, Guidance
from sgdm.diffusion.objective import make_objective
from sgdm.diffusion.samplers import make_rows
from sgdm.diffusion.sampling import evaluations
from sgdm.files import atomic_write, fingerprint, sha256_file
from sgdm.models.pretrained import WEIGHTS
from sgdm.progress import Advance

BEST_SHOWN = 10
SHOWN = (
    "frechet_distance",
    "kernel_distance",
    "inception_score",
    "precision",
    "recall",
    "backbone_frechet_distance",
    "replica_share",
    "images_per_second",
)


def table_path(run: Path) -> Path:
    return run / "sweep.csv"


def grid_path(run: Path, key: str) -> Path:
    """`image` uint8 [64, H, W, 3]: the first images of a row."""
    return run / "sweep" / "grids" / f"{key}.npz"


def run(config: Config) -> Ranks:
    """Measures what the table does not have yet. All processes call it."""
    trained = open_run(config)
    ranks = distributed.join()
    with _alone_in(config.run / "sweep", ranks):
        if ranks.first:
            save_config(config, config.run / "sweep" / "config.yaml")
            lengths = [ema for ema in axes(config)["ema"] if tracked_decay(config, ema) is None]
            posthoc.make_missing(config, lengths)
        ranks.wait()
        sweep = Sweep(config, trained, ranks)
        rows = sweep.search() if config.sweep.search == "coarse-to-fine" else sweep.grid()
        unseen = sweep.judge.replicas_of_unseen()
    if ranks.first:
        show(config, rows)
        if unseen is not None:
            telemetry.say(f"evaluate: of val images, which were not trained on, the share of replicas is {unseen:.2f}")
    return ranks


@contextmanager
def _alone_in(folder: Path, ranks: Ranks) -> Iterator[None]:
    if not ranks.first:
        yield
        return
    with run_lock(folder):
        yield


class Sweep:
    """A sweep of a run, by all processes alike."""

    def __init__(self, config: Config, trained: Trained, ranks: Ranks) -> None:
        self._config, self._trained, self._ranks = config, trained, ranks
        self._keeps = config.evaluation.keep_samples
        self._weights = {ema: average_folder(config, trained, ema) for ema in axes(config)["ema"]}
        self._digests = {ema: sha256_file(folder / WEIGHTS) for ema, folder in self._weights.items()}
        self._rows = self._read()
        self._evaluations = _evaluations(config)
        self.judge = Judge(config, ranks)
        if ranks.first:
            self.judge.say_what_is_left_out()
            self._forget_others(config.run / "sweep" / "batches")
        self._painter: Painter | None = None  # not made where everything is measured already
        self._guidance = "none"
        if config.guided:
            self._guidance = "classifier-free" if trained.weak is None else f"autoguidance by {trained.weak}"

    def grid(self) -> list[dict[str, Any]]:
        """The rows of all points."""
        asked = points(self._config)
        missing = len([point for point in asked if self._find(point) is None])
        with self._progress("sweep", missing) as advance:
            return [self._row(point, advance) for point in asked]

    def search(self) -> list[dict[str, Any]]:
        """The rows of the points that lead to the best one. ValueError where no point can have the metric."""
        metric = self._config.sweep.metric
        if self._ranks.first and metric in self.judge.left_out:
            raise ValueError(f"sweep.metric {metric} has no figures here: {self.judge.left_out[metric]}")
        rows: list[dict[str, Any]] = []

        def measure(values: dict[str, Any]) -> float | None:
            """Mean over the seeds."""
            point = point_at(self._config, values)
            asked = [dataclasses.replace(point, seed=seed) for seed in seeds(self._config)]
            missing = len([one for one in asked if self._find(one) is None])
            with self._progress(f"sweep, {point.label}", missing) as advance:
                found = [self._row(one, advance) for one in asked]
            rows.extend(row for row in found if row not in rows)
            figures = [row[metric] for row in found]
            return None if None in figures else float(np.mean(figures))

        coarse_to_fine(axes(self._config), measure)
        return rows

    @contextmanager
    def _progress(self, name: str, missing: int) -> Iterator[Advance]:
        total = missing * self._config.sampling.images
        with telemetry.progress(name, total, visible=self._ranks.first and missing > 0) as advance:
            yield advance

    def _forget_others(self, folder: Path) -> None:
        """What kills of other sweeps have left behind."""
        wanted = {self._key(point) for point in points(self._config) if self._find(point) is None}
        for path in folder.glob("*"):
            if path.name not in wanted:
                shutil.rmtree(path)

    def _key(self, point: Point) -> str:
        drawn = self._trained.key(point, self._digests[point.ema])
        return fingerprint(drawn, self._config.sampling.images, self.judge.identity)[:16]

    def _trained_images(self, point: Point) -> int:
        """Where its average ends."""
        tracked = tracked_decay(self._config, point.ema) is not None
        return checkpoint.images_of(self._trained.checkpoint) if tracked else posthoc.end(self._config)

    def _find(self, point: Point) -> dict[str, Any] | None:
        """Its row, if it is measured, and its samples are there where they are asked for."""
        key = self._key(point)
        if self._keeps and exports.find(self._config.sampling.format, self._stem(key), key) is None:
            return None
        return self._rows.get(key)

    def _read(self) -> dict[str, dict[str, Any]]:
        """The rows of the table by their keys."""
        return {row["key"]: row for row in sweep_results.read(table_path(self._config.run))}

    def _stem(self, key: str) -> Path:
        """Where a point's samples are kept."""
        return self._config.run / "samples" / f"sweep-{key}"

    def _row(self, point: Point, advance: Advance) -> dict[str, Any]:
        """A point's row of the table, which every process reads there, measured where it is not there yet."""
        found = self._find(point)
        self._ranks.wait()  # all have looked before it is written
        if found is not None:
            return found
        self._measure(point, self._key(point), advance)
        self._ranks.wait()
        self._rows = self._read()
        found = self._find(point)
        assert found is not None
        return found

    def _measure(self, point: Point, key: str, advance: Advance) -> None:
        config, images = self._config, self._config.sampling.images
        if self._painter is None:
            self._painter = Painter(config, self._trained, images, self._ranks)
        painter = self._painter
        painter.use(self._weights[point.ema])
        subjects = choose_subjects(config, self._trained.guidance, images, point.seed, self._ranks.device)
        batches = Batches(config.run / "sweep" / "batches" / key, images, f"{key}{' with samples' * self._keeps}")
        drawn = 0

        def draw(numbers: NDArray[np.int64]) -> Tensor:
            nonlocal drawn
            drawn += len(numbers) * self._ranks.world_size
            return painter.draw(point, subjects, numbers)

        start = time.monotonic()
        found = self.judge.measure(
            batches,
            draw,
            painter.batch_size,
            advance,
            (lambda numbers: tell(subjects, numbers)) if self._keeps else None,
        )
        seconds = time.monotonic() - start
        if not self._ranks.first:
            return
        _save_grid(batches, grid_path(config.run, key))
        if self._keeps:
            exports.export(config.sampling.format, self._stem(key), batches, key)
        reference = self.judge.reference
        low, high = point.interval or (None, None)
        row = {
            "key": key,
            "guidance_scale": point.guidance_scale,
            "steps": point.steps,
            "sampler": point.sampler,
            "ema": point.ema,
            "eta": point.eta,
            "interval_low": low,
            "interval_high": high,
            "seed": point.seed,
            "trained_images": self._trained_images(point),
            "checkpoint": self._trained.digest[:8],
            "guidance": self._guidance,
            "subjects": describe_subjects(config),
            "protocol": protocol_of(config, point, reference.split),
            "images": images,
            "reference": reference.split,
            "reference_images": reference.images,
            "network": self.judge.network.name,
            "backbone": None if self.judge.backbone is None else self.judge.backbone.name,
            "evaluations": self._evaluations[point],
            # Of a point that was interrupted there is a part of the time alone.
            "seconds": round(seconds, 3) if drawn >= images else None,
            "images_per_second": round(images / seconds, 3) if drawn >= images else None,
            **found,
        }
        sweep_results.add(table_path(config.run), row)
        batches.remove()


def _evaluations(config: Config) -> dict[Point, int]:
    """Passes of a network an image, for every point. ValueError for one that cannot be drawn, before any is."""
    diffusion = config.diffusion
    objective = make_objective(diffusion.prediction, diffusion.schedule, diffusion.min_snr_gamma)

    def count(point: Point) -> int:
        make_rows(objective, point.sampler, point.steps, point.eta)
        guidance = Guidance(point.guidance_scale, point.interval) if config.guided else UNGUIDED
        return evaluations(objective, sampler=point.sampler, steps=point.steps, guidance=guidance)

    return {point: count(point) for point in points(config)}


def show(config: Config, rows: list[dict[str, Any]]) -> None:
    """The best points on the screen, and where all of them are."""
    metric = config.sweep.metric
    found = [one for one in sweep_results.summarise(rows) if one[metric] is not None]
    names = [name for name in SHOWN if any(one[name] is not None for one in found)]
    if found:
        found.sort(key=lambda one: float(one[metric]))
        table = Table(box=None, pad_edge=False)
        table.add_column("the best", no_wrap=True)
        for name in names:
            table.add_column(name.replace("_", " "), justify="right")
        for one in found[:BEST_SHOWN]:
            table.add_row(label_of(one), *(_figure(one, name) for name in names))
        telemetry.console.print(table)
    else:
        telemetry.say(f"evaluate: there is no {metric} of any point: give another --sweep.metric")
    telemetry.say(f"evaluate: {len(rows):,} rows of this sweep -> {table_path(config.run)}")


def _figure(one: dict[str, Any], name: str) -> str:
    if one[name] is None:
        return "-"
    deviation = one[f"{name}_deviation"]
    return f"{one[name]:.4g}" + (f" ± {deviation:.2g}" if deviation is not None else "")


def _save_grid(batches: Batches, path: Path) -> None:
    with atomic_write(path) as temporary:
        np.savez(temporary, allow_pickle=False, image=batches.gather("image", PICTURES))
