"""Compare samples with real images: metrics.json, and the page to look at, report.html; or a sweep, see sweep.py."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine import distributed, exports, sweep, telemetry
from engine.annotate import make_encoder
from engine.batches import Batches
from engine.config import Config
from engine.console import run_program
from engine.distributed import Ranks
from engine.drawing import open_run
from engine.info import devices, versions
from engine.judge import Images, Judge
from engine.reference import open_split
from engine.report import write_report
from engine.sample import Samples, plan_samples
from engine.subjects import layout_rows
from sgdm.annotate.boxes import concatenate, corloc, find_boxes
from sgdm.annotate.layout import load_layout
from sgdm.annotate.patches import PatchEncoder, patch_encoder
from sgdm.data.loader import Loader
from sgdm.files import fingerprint, read_json, write_json
from sgdm.ragged import Boxes


def run(config: Config) -> None:
    ranks = sweep.run(config) if config.sweep.asked else measure_samples(config)
    if ranks.first:
        train = open_split(config, "train", ranks.device)
        report = write_report(
            config.run,
            config.data.folder,
            config.clusters_folder,
            {**versions(), "device": ", ".join(devices())},
            lambda rows: _pixels(train, rows).permute(0, 2, 3, 1).cpu().numpy(),
        )
        telemetry.say(f"report -> {report}")


def measure_samples(config: Config) -> Ranks:
    """metrics.json of the samples that `sgdm sample` has drawn. ValueError where they are missing."""
    planned = plan_samples(config, open_run(config))
    for samples in planned:
        _StoredImages(config, samples, torch.device("cpu"))  # all are there, before the first is looked at
    ranks = distributed.join()
    judge = Judge(config, ranks)
    if ranks.first:
        judge.say_what_is_left_out()
    path = config.run / "metrics.json"
    key = fingerprint(judge.identity, [samples.key for samples in planned])
    if path.is_file() and read_json(path).get("key") == key:
        if ranks.first:
            telemetry.skip("evaluate", path)
        return ranks
    with telemetry.stage(config, "evaluate", visible=ranks.first) as record:
        metrics = measure(config, judge, planned, ranks)
        if ranks.first:
            write_json(path, {**metrics, "key": key})
        record.images = len(planned) * config.sampling.images
        record.result = str(path)
    if ranks.first:
        print_results(metrics)
    return ranks


def measure(config: Config, judge: Judge, planned: list[Samples], ranks: Ranks) -> dict[str, Any]:
    """What metrics.json holds, on the first process: every guidance scale, and real training images as the floor,
    against a reference."""
    reference, images = judge.reference, config.sampling.images
    train, floor = reference.train, reference.floor
    folder = config.run / "evaluation"
    with telemetry.progress("evaluate", len(floor) + len(planned) * images, visible=ranks.first) as advance:

        def measured(name: str, count: int, images_of: Images) -> dict[str, float | None]:
            batches = Batches(folder / name, count, fingerprint(name, judge.identity))
            found = judge.measure(batches, images_of, config.evaluation.batch_size, advance)
            return found

        real: dict[str, float | None] = {}
        if len(floor):
            real = measured("real", len(floor), lambda numbers: _pixels(train, floor[numbers]))
            if "replica_share" in real:  # these were trained on
                real["replica_share"] = judge.replicas_of_unseen()
        results: list[dict[str, Any]] = []
        for samples in planned:
            stored = _StoredImages(config, samples, ranks.device)
            scale = samples.point.guidance_scale
            results.append({"guidance_scale": scale, **measured(samples.key[:16], images, stored)})
        if ranks.first:
            shutil.rmtree(folder)  # with what kills have left behind
    if config.annotation.layout == "boxes" and ranks.first:
        encoder = patch_encoder(make_encoder(config, train, distributed.alone(train.device))[0], "boxes")
        layout = load_layout(config.layout_folder, train.manifest.digest).objects
        assert isinstance(layout, Boxes)
        for row, samples in zip(results, planned, strict=True):
            row |= layout_agreement(encoder, layout, config, samples)
    return {
        "network": judge.network.name,
        "backbone": None if judge.backbone is None else judge.backbone.name,
        "reference": {"split": reference.split, "images": reference.images},
        "samples": images,
        "results": results,
        "real": real,
    }


class _StoredImages:
    """Samples that were drawn before."""

    def __init__(self, config: Config, samples: Samples, device: torch.device) -> None:
        format = config.sampling.format
        path = exports.find(format, samples.stem, samples.key)
        if path is None:
            raise ValueError(
                f"{samples.stem} is missing as {format}, or of another checkpoint or configuration: run sample first"
            )
        self._format, self._path, self._device = format, path, device

    def __call__(self, numbers: NDArray[np.int64]) -> Tensor:
        """uint8 [n, 3, H, W]."""
        return (
            torch.from_numpy(exports.images_of(self._format, self._path, numbers)).permute(0, 3, 1, 2).to(self._device)
        )


def layout_agreement(encoder: PatchEncoder, layout: Boxes, config: Config, samples: Samples) -> dict[str, float]:
    """How far samples follow the boxes that they were asked for.

    The share of samples in which LOST finds a box that covers the asked one with an IoU of one half or more, and the
    same for the box that another sample was asked for, which is chance.
    """
    stored = _StoredImages(config, samples, torch.device("cpu"))
    batches = np.array_split(
        np.arange(config.sampling.images), -(-config.sampling.images // config.annotation.batch_size)
    )
    found = concatenate([find_boxes(encoder(stored(numbers))) for numbers in batches]).corners
    rows = layout_rows(layout, config.sampling.images, samples.point.seed)
    asked = [layout.corners[layout.image_offsets[row] : layout.image_offsets[row + 1]] for row in rows]
    return {
        "layout_agreement": corloc(found, asked),
        "layout_agreement_by_chance": corloc(found, [*asked[1:], asked[0]]),
    }


def print_results(metrics: dict[str, Any]) -> None:
    reference = metrics["reference"]
    telemetry.say(
        f"{metrics['network']} features, {metrics['samples']:,} samples against {reference['images']:,} "
        f"{reference['split']} images:"
    )
    rows = (
        [*metrics["results"], {"guidance_scale": "real", **metrics["real"]}] if metrics["real"] else metrics["results"]
    )
    for row in rows:
        figures = ", ".join(
            f"{name} {value:.4g}" for name, value in row.items() if name != "guidance_scale" and value is not None
        )
        telemetry.say(f"  guidance {row['guidance_scale']}: {figures}")


def _pixels(loader: Loader, rows: NDArray[np.int64]) -> Tensor:
    """Images uint8 [n, 3, H, W] of rows of the data set."""
    return torch.cat([batch.image for batch in loader.select(rows)])


def main() -> None:
    run_program("evaluate", run)


if __name__ == "__main__":
    main()
