"""What a run has left on disk, read and checked: the report's only way to files."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from engine import checkpoint, exports, sweep_results
from engine.config import Config, load_config
from engine.meters import LEVELS
from sgdm.annotate.cluster_set import ClusterSet, load_clusters
from sgdm.annotate.sets import MANIFEST
from sgdm.files import read_json


class EvidenceError(ValueError):
    """A file of a run that cannot be what its stage wrote; the message names it and the way out."""


class Samples(NamedTuple):
    """The samples of a guidance scale, in the format that the run writes."""

    format: str
    path: Path
    examples: Path
    """Images of a few layouts several times over; not there where no layout guides."""


@dataclass(frozen=True)
class Evidence:
    """The files of a run. A part that no stage has written yet is empty or None; formats: the stage that writes it."""

    config: Config
    data: dict[str, Any]
    annotation: ClusterSet | None
    log: list[dict[str, Any]]
    stages: dict[str, dict[str, Any]]
    metrics: dict[str, Any]
    samples: dict[float, Samples]
    sweep: list[dict[str, Any]]
    grids: dict[str, Path]
    parameters: int | None


def gather(run: Path, data: Path, annotation: Path) -> Evidence:
    """Reads every file that is there. ValueError names the one that is damaged."""
    config = load_config(run / "config.yaml")
    manifest = _read_object(data / "train.json", required=("count", "digest"))
    return Evidence(
        config=config,
        data=manifest,
        annotation=_read_annotation(annotation, manifest),
        log=_read_log(run / "log.jsonl"),
        stages=_read_stages(run / "stages.json"),
        metrics=_read_metrics(run / "metrics.json"),
        samples=_find_samples(run / "samples", config),
        sweep=_read_sweep(run / "sweep.csv"),
        grids={path.stem: path for path in (run / "sweep" / "grids").glob("*.npz")},
        parameters=_count_parameters(run, config),
    )


def read_clusters(samples: Samples) -> np.ndarray:
    """Cluster ids int64 [N] of all samples, -1 where there is no condition; no image is read."""
    with _reading(samples.path, "sample"):
        cluster = exports.clusters_of(samples.format, samples.path)
    if len(cluster) == 0:
        raise _damaged(samples.path, "no images", "sample")
    return cluster


def read_images(samples: Samples, numbers: np.ndarray) -> np.ndarray:
    """The samples of these numbers, int64 [n] and not empty, uint8 [n,H,W,3]; no other is decoded."""
    with _reading(samples.path, "sample"):
        image = exports.images_of(samples.format, samples.path, numbers)
    _require_images(samples.path, "sample", image)
    return image


def read_grid(path: Path) -> np.ndarray:
    """The first images of a point of a sweep, uint8 [N,H,W,3]."""
    (image,) = _read_arrays(path, "evaluate", "image")
    _require_images(path, "evaluate", image)
    return image


def _read_arrays(path: Path, stage: str, *names: str) -> list[np.ndarray]:
    with _reading(path, stage), np.load(path, allow_pickle=False) as file:
        return [file[name] for name in names]


@contextmanager
def _reading(path: Path, stage: str) -> Iterator[None]:
    try:
        yield
    # A SyntaxError is what Pillow says of a broken PNG file.
    except (OSError, EOFError, ValueError, LookupError, SyntaxError, zipfile.BadZipFile) as error:
        raise _damaged(path, str(error), stage) from error


def _require_images(path: Path, stage: str, image: np.ndarray) -> None:
    if image.dtype != np.uint8 or image.ndim != 4 or image.shape[3] != 3 or len(image) == 0:
        raise _damaged(path, f"image is {image.dtype} {image.shape}, not uint8 [N,H,W,3]", stage)


def read_examples(samples: Samples) -> dict[str, np.ndarray]:
    """layout uint8 [n,H,W], image uint8 [n,H,W,3], row int64 [n]; empty where no layout guides."""
    names = ("layout", "image", "row")
    path = samples.examples
    return dict(zip(names, _read_arrays(path, "sample", *names), strict=True)) if path.exists() else {}


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_number_or_none(value: object) -> bool:
    return value is None or is_number(value)


def _damaged(path: Path, why: str, stage: str) -> EvidenceError:
    return EvidenceError(f"{path} is damaged ({why}); delete it and run {stage} again")


def _read_object(path: Path, required: tuple[str, ...] = ()) -> dict[str, Any]:
    if not path.exists():
        return {}
    found = read_json(path)
    if not isinstance(found, dict):
        raise EvidenceError(f"{path} is damaged (no JSON object); delete it and run the stage that writes it again")
    for key in required:
        if key not in found:
            raise EvidenceError(f"{path} has no {key}; delete it and run the stage that writes it again")
    return found


def _read_annotation(folder: Path, data: dict[str, Any]) -> ClusterSet | None:
    if not data or not (folder / MANIFEST).exists():
        return None
    return load_clusters(folder, data["digest"])


def _read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of log.jsonl. A last line without its end is what a kill leaves, and is left out."""
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True), 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            if not line.endswith("\n"):
                break
            raise EvidenceError(f"{path}, line {number}, is not valid JSON ({error}); remove that line") from error
        for key in ("images", "loss", "images_per_second"):
            if not isinstance(row, dict) or not is_number(row.get(key)):
                raise EvidenceError(f"{path}, line {number}, has no number {key}; remove that line")
        levels = row.setdefault("loss_by_level", [None] * LEVELS)  # logs of an older version have none
        if not isinstance(levels, list) or len(levels) != LEVELS or not all(map(_is_number_or_none, levels)):
            raise EvidenceError(f"{path}, line {number}: loss_by_level is no {LEVELS} numbers; remove that line")
        rows.append(row)
    return rows


def _read_stages(path: Path) -> dict[str, dict[str, Any]]:
    stages = _read_object(path)
    for name, row in stages.items():
        for key in ("seconds", "peak_memory_gb"):
            if not isinstance(row, dict) or not is_number(row.get(key)):
                raise _damaged(path, f"stage {name} has no number {key}", name)
    return stages


def _read_metrics(path: Path) -> dict[str, Any]:
    metrics = _read_object(path)
    if not metrics:
        return {}
    reference = metrics.get("reference")
    whole = (
        isinstance(metrics.get("network"), str)
        and is_number(metrics.get("samples"))
        and isinstance(reference, dict)
        and is_number(reference.get("images"))
        and "split" in reference
        and isinstance(metrics.get("results"), list)
        and len(metrics["results"]) > 0
    )
    if not whole:
        raise _damaged(path, "network, samples, reference or results are missing", "evaluate")
    for number, row in enumerate(metrics["results"]):
        missing = _missing_number(row)
        if missing:
            raise _damaged(path, f"results[{number}] has no number {missing}", "evaluate")
    return metrics


def _missing_number(row: Any) -> str | None:
    """What a measurement lacks to be shown. A Fréchet distance may be None: too few real images do not allow one."""
    if not isinstance(row, dict) or not is_number(row.get("guidance_scale")):
        return "guidance_scale"
    if not _is_number_or_none(row.get("frechet_distance", math.nan)):
        return "frechet_distance"
    return None if is_number(row.get("kernel_distance")) else "kernel_distance"


def _read_sweep(path: Path) -> list[dict[str, Any]]:
    rows = sweep_results.read(path)
    for number, row in enumerate(rows, 2):
        missing = _missing_number(row)
        if missing:
            raise EvidenceError(f"{path}, line {number}, has no {missing}; remove that line")
    return rows


def _find_samples(folder: Path, config: Config) -> dict[float, Samples]:
    """By guidance scale; samples of scales, or in a format, that the run no longer has are of an older one."""
    format = config.sampling.format
    found = {}
    for scale in sorted(config.sampling.guidance_scales):
        stem = folder / f"guidance-{scale:g}"
        with _reading(stem, "sample"):
            path = exports.path_of(format, stem)
        if path is not None:
            found[scale] = Samples(format, path, folder / f"{stem.name}-examples.npz")
    return found


def _count_parameters(run: Path, config: Config) -> int | None:
    """Parameters of the network that drew the samples, from the head of its weight file."""
    last = checkpoint.newest(run)
    if last is None:
        return None
    path = checkpoint.average_folder(last, config.ema_decay) / "model.safetensors"
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="numpy") as weights:
            return sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
    except SafetensorError as error:
        raise _damaged(path, str(error), "train") from error
