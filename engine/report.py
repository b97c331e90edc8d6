"""One page about a run, to look at rather than read: samples, clusters, metrics, curves, stages, configuration."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from engine import charts
from engine.evidence import Evidence, Samples, gather, is_number, read_clusters, read_examples, read_images
from engine.metric_names import (
    LAYOUTS,
    METRICS,
    QUALITY,
    decimals,
    heading_of,
    leading,
    name_of,
    network_of,
    provenance,
    title_of,
    why_no_frechet_distance,
)
from engine.pages import render
from engine.sheets import layout_lines
from engine.sweep_report import sweep_section
from sgdm.files import atomic_write

RealImages = Callable[[np.ndarray], np.ndarray]
"""Indices int64 [n] of training images, ascending and distinct -> their pixels, uint8 [n,H,W,3]."""

GALLERY_CLUSTERS = 12
GALLERY_COLUMNS = 7
GRID_ROWS = 8


def write_report(run: Path, data: Path, annotation: Path, versions: dict[str, str], real_images: RealImages) -> Path:
    """Writes `run`/report.html, one file that loads nothing else, and returns its path.

    data, annotation: folders of the prepared data set and of its annotation, which need not exist yet.
    versions: package -> version, as printed at the end. real_images: reads training images by index.
    Sections whose files are not there yet say so in a sentence; a damaged file is a ValueError with its path."""
    evidence = gather(run, data, annotation)
    best = best_result(evidence.metrics)
    page = render(
        "report_template.html",
        name=run.resolve().name,
        evidence=evidence,
        config=evidence.config,
        config_text=(run / "config.yaml").read_text(encoding="utf-8"),
        versions=versions,
        best=best,
        throughput=statistics.median(row["images_per_second"] for row in evidence.log) if evidence.log else None,
        metrics=metrics_section(evidence.metrics),
        sweep=sweep_section(evidence.sweep, evidence.grids),
        curves=curves_section(evidence.log),
        stages=stages_section(evidence.stages),
        cluster_report=cluster_section(evidence),
        **pictures(evidence, best, real_images),
    )
    path = run / "report.html"
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def best_result(metrics: dict[str, Any]) -> dict[str, Any]:
    """The guided result nearest to the reference, with the unguided one where it was measured; {} without metrics."""
    if not metrics:
        return {}
    results = metrics["results"]
    key = leading(results)
    guided = [row for row in results if row["guidance_scale"] > 0] or results
    best = min(guided, key=lambda row: row[key])
    unguided = next((row[key] for row in results if row["guidance_scale"] == 0), None)
    comparable = unguided is not None and unguided > 0  # a kernel distance near 0 may be below it
    return {
        "guidance_scale": best["guidance_scale"],
        "name": name_of(key, metrics["network"]),
        "distance": best[key],
        "unguided": unguided if best["guidance_scale"] > 0 else None,
        "change": f" ({100 * (best[key] / unguided - 1):+.0f} %)".replace("-", "−") if comparable else "",
        "note": _why_kernel_distance(metrics),
        "provenance": _provenance(metrics),
    }


def _why_kernel_distance(metrics: dict[str, Any]) -> str:
    """Empty where the Fréchet distance is defined."""
    if leading(metrics["results"]) == "frechet_distance":
        return ""
    return why_no_frechet_distance(metrics["reference"]["images"])


def _provenance(metrics: dict[str, Any], key: str = "frechet_distance") -> str:
    reference = metrics["reference"]
    network = network_of(key, metrics["network"], metrics.get("backbone"))
    if key == "replica_share":
        return f"{network} features, {metrics['samples']:,} samples: those closer to a training image than any other is"
    return provenance(network, metrics["samples"], reference["images"], reference["split"])


def metrics_section(metrics: dict[str, Any]) -> dict[str, Any]:
    if not metrics:
        return {}
    results = sorted(metrics["results"], key=lambda row: row["guidance_scale"])
    network, backbone = metrics["network"], metrics.get("backbone")
    real = metrics.get("real") or {}
    scales = [row["guidance_scale"] for row in results]
    columns = [key for key in METRICS if all(is_number(row.get(key)) for row in results)]
    series = {key: [row[key] for row in results] for key in columns}
    unguided: dict[str, float] = next((row for row in results if row["guidance_scale"] == 0), {})
    figures = [
        (
            charts.guidance_chart(
                title_of(key, network, backbone), scales, series[key], unguided.get(key), real.get(key)
            ),
            _provenance(metrics, key),
        )
        for key in columns
        if key not in QUALITY + LAYOUTS
    ]
    for title, keys in (("Fidelity and diversity", QUALITY), ("Layouts that were followed", LAYOUTS)):
        lines = [charts.Line(METRICS[key][0], scales, series[key]) for key in keys if key in columns]
        if lines:
            across = charts.Across("guidance scale w", {scale: f"{scale:g}" for scale in scales})
            figures.append((charts.lines_chart(f"{title} ({network})", across, lines), _provenance(metrics)))
    best = {key: (min if METRICS[key][1] == "↓" else max)(series[key]) for key in columns}
    rows = [(f"w = {row['guidance_scale']:g}", row) for row in results]
    if real:
        rows.append(("real images", real))
    table = [
        (
            name,
            [
                (_fixed(row.get(key), key, series[key]), row is not real and row.get(key) == best[key])
                for key in columns
            ],
        )
        for name, row in rows
    ]
    return {
        "provenance": _provenance(metrics),
        "note": _why_kernel_distance(metrics),
        "figures": figures,
        "headings": [heading_of(key, network, backbone) for key in columns],
        "table": table,
        "has_real": bool(real),
    }


def curves_section(log: list[dict[str, Any]]) -> list[Any]:
    if not log:
        return []
    images, loss, speed = (
        np.array([row[key] for row in log], dtype=float) for key in ("images", "loss", "images_per_second")
    )
    figures = [
        charts.curve_chart("Training loss", images, loss, log_scale=True),
        charts.curve_chart("Throughput, images/s", images, speed, from_zero=True),
    ]
    last = log[-math.ceil(len(log) / 10) :]
    by_level = np.ma.masked_invalid(np.array([row["loss_by_level"] for row in last], dtype=float)).mean(axis=0)
    if by_level.count():
        figures.append(charts.level_chart("Loss by noise level, last tenth of the log", by_level.filled(np.nan)))
    return figures


def stages_section(stages: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Rows with the lengths of their bars, in percent of the longest."""
    if not stages:
        return {}
    longest = max(row["seconds"] for row in stages.values()) or 1
    largest = max(row["peak_memory_gb"] for row in stages.values()) or 1
    rows = [
        {
            **row,
            "name": name,
            "time_share": 100 * row["seconds"] / longest,
            "memory_share": 100 * row["peak_memory_gb"] / largest,
            "speed": row["images"] / row["seconds"] if row.get("images") and row["seconds"] else None,
        }
        for name, row in stages.items()
    ]
    return {
        "rows": rows,
        "seconds": sum(row["seconds"] for row in stages.values()),
        "peak_memory_gb": max(row["peak_memory_gb"] for row in stages.values()),
        "finished": max(str(row.get("finished", "")) for row in stages.values()),
        "device": any("peak_device_memory_gb" in row for row in stages.values()),
    }


def cluster_section(evidence: Evidence) -> dict[str, Any]:
    if evidence.annotation is None:
        return {}
    manifest = evidence.annotation.manifest
    sizes = np.bincount(evidence.annotation.clusters, minlength=manifest.num_clusters)
    return {
        "figure": charts.size_histogram("Cluster sizes", sizes),
        "sizes": {
            "smallest": int(sizes.min()),
            "median": float(np.median(sizes)),
            "largest": int(sizes.max()),
            "empty": int((sizes == 0).sum()),
        },
        "labels": {
            heading: manifest.report[key]
            for key, heading in (
                ("purity", "Purity"),
                ("nmi", "Normalised mutual information"),
                ("ari", "Adjusted Rand index"),
            )
            if is_number(manifest.report.get(key))
        },
        "note": manifest.parameters.get("note", ""),
        "making": {key: _plain(value) for key, value in manifest.parameters.items() if key != "note"},
    }


def pictures(evidence: Evidence, best: dict[str, Any], real_images: RealImages) -> dict[str, Any]:
    """Sheets of samples, a guidance scale each, beside real images; and clusters, real beside generated."""
    scales = sorted(evidence.samples)
    columns = min(8, max(3, 16 // (len(scales) + 1)))
    shown = GRID_ROWS * columns
    gallery_scale = _gallery_scale(scales, best)
    panels, ids, gallery, layouts = [], [], {}, {}
    for scale in scales:
        samples = evidence.samples[scale]
        cluster = read_clusters(samples)
        first = np.arange(min(shown, len(cluster)))
        panels.append({"scale": scale, "sheet": charts.sheet(read_images(samples, first), columns)})
        ids.append(cluster[:shown])
        if scale == gallery_scale and evidence.annotation is not None:
            gallery = {"scale": scale, "rows": _gallery(samples, cluster, evidence.annotation.clusters, real_images)}
        if scale == gallery_scale and (examples := read_examples(samples)):
            layouts = {"scale": scale, **_layouts(examples, evidence.config.segments, real_images)}
    if panels and evidence.data.get("count"):
        spread = np.unique(np.linspace(0, evidence.data["count"] - 1, shown).astype(np.int64))
        panels.append({"scale": None, "sheet": charts.sheet(real_images(spread), columns)})
    comparable = len(scales) > 1 and all(np.array_equal(ids[0], other) for other in ids)
    return {"panels": panels, "gallery": gallery, "layouts": layouts, "comparable": comparable}


def _layouts(examples: dict[str, np.ndarray], segments: int, real_images: RealImages) -> dict[str, Any]:
    """A line for each layout: it, the real image that it was found in, and what was drawn for it."""
    real = real_images(np.unique(examples["row"]))
    lines = layout_lines(examples["layout"], examples["image"], examples["row"], segments, real)
    columns = max(map(len, lines))
    blank = np.full_like(lines[0][0], 255)
    pictures = [picture for line in lines for picture in [*line, *[blank] * (columns - len(line))]]
    return {"sheet": charts.sheet(np.stack(pictures), columns), "lines": len(lines)}


def _gallery_scale(scales: list[float], best: dict[str, Any]) -> float | None:
    """The best guided scale by the metrics; without metrics the second guided one, which is usually w = 2."""
    guided = [scale for scale in scales if scale > 0]
    if best.get("guidance_scale") in guided:
        return float(best["guidance_scale"])
    return guided[min(1, len(guided) - 1)] if guided else None


def _gallery(
    samples: Samples, cluster: np.ndarray, clusters: np.ndarray, real_images: RealImages
) -> list[dict[str, Any]]:
    """Clusters from the largest to the smallest, chosen evenly among those with a full row of samples."""
    sizes = np.bincount(clusters)
    sampled = np.bincount(cluster[(cluster >= 0) & (cluster < len(sizes))], minlength=len(sizes))
    shown = np.flatnonzero(sizes * sampled)
    by_samples = shown[np.argsort(-sampled[shown], kind="stable")]
    full = int((sampled[shown] >= GALLERY_COLUMNS).sum())
    candidates = by_samples[: max(full, GALLERY_CLUSTERS)]
    candidates = candidates[np.argsort(-sizes[candidates], kind="stable")]
    even = np.linspace(0, len(candidates) - 1, min(GALLERY_CLUSTERS, len(candidates))).astype(int)
    rows = []
    for identity in candidates[even]:
        members = np.flatnonzero(clusters == identity)
        spread = np.unique(np.linspace(0, len(members) - 1, GALLERY_COLUMNS).astype(np.int64))
        made = read_images(samples, np.flatnonzero(cluster == identity)[:GALLERY_COLUMNS])
        rows.append(
            {
                "cluster": int(identity),
                "size": len(members),
                "real": charts.sheet(real_images(members[spread]), GALLERY_COLUMNS),
                "made": charts.sheet(made, GALLERY_COLUMNS),
            }
        )
    return rows


def _fixed(value: Any, key: str, column: list[float]) -> str:
    return f"{value:.{decimals(key, column)}f}" if is_number(value) else "–"


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(entry)}" for key, entry in value.items())
    if isinstance(value, list):
        return ", ".join(_plain(entry) for entry in value)
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if is_number(value) else str(value)
