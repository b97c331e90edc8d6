"""Compare the samples with real images: metrics.json, and the page to look at, report.html."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine import distributed, telemetry
from engine.annotate import make_encoder
from engine.config import SMALLEST_SET, Config, to_plain
from engine.console import run_program
from engine.info import devices, versions
from engine.report import write_report
from engine.sample import is_whole, make_plan
from sgdm.annotate.boxes import concatenate, corloc, find_boxes
from sgdm.annotate.layout import load_layout
from sgdm.annotate.patches import PatchEncoder, patch_encoder
from sgdm.data.loader import Loader
from sgdm.files import fingerprint, read_json, write_json
from sgdm.metrics.evaluate import evaluate
from sgdm.metrics.networks import Features, extract_features, load_network
from sgdm.ragged import Boxes


def run(config: Config) -> None:
    samples = make_plan(config).files
    for path, key in samples.values():
        if not is_whole(path, key):
            raise ValueError(f"{path} is missing or of another checkpoint or configuration: run sample first")
    metrics_path = config.run / "metrics.json"
    device = distributed.default_device()
    train = open_split(config, "train", device)
    reference = train
    if config.evaluation.reference == "val":
        if (config.data.folder / "val.beton").exists():
            reference = open_split(config, "val", device)
        else:
            telemetry.say("evaluate: there is no val split; the reference is training images")
    digests = [train.manifest.digest, reference.manifest.digest]
    key = fingerprint(to_plain(config.evaluation), digests, [key for _, key in samples.values()])
    if metrics_path.is_file() and read_json(metrics_path).get("key") == key:
        telemetry.skip("evaluate", metrics_path)
    else:
        with telemetry.stage(config, "evaluate") as record:
            paths = {scale: path for scale, (path, _) in samples.items()}
            metrics = measure(config, train, reference, paths)
            write_json(metrics_path, {**metrics, "key": key})
            record.images = len(paths) * config.sampling.images
            record.result = str(metrics_path)
        print_results(metrics)
    report = write_report(
        config.run,
        config.data.folder,
        config.clusters_folder,
        {**versions(), "device": ", ".join(devices())},
        lambda rows: _pixels(train, rows),
    )
    telemetry.say(f"report -> {report}")


def open_split(config: Config, split: str, device: torch.device) -> Loader:
    path = config.data.folder / f"{split}.beton"
    return Loader(path, batch_size=config.evaluation.batch_size, device=device, seed=config.seed)


def measure(config: Config, train: Loader, reference: Loader, samples: dict[float, Path]) -> dict[str, Any]:
    """What metrics.json holds: every guidance scale, and real training images as the floor, against a reference."""
    evaluation = config.evaluation
    network = load_network(evaluation.network, evaluation.weights, train.device)
    reference_rows, floor_rows = choose_real_images(config, train, reference)
    total = len(reference_rows) + len(floor_rows) + len(samples) * config.sampling.images
    with telemetry.progress("evaluate", total) as advance:

        def features_of(batches: Iterator[Tensor], count: int) -> Features:
            return extract_features(network, batches, count, advance)

        real = features_of((batch.image for batch in reference.select(reference_rows)), len(reference_rows))
        floor = {}
        if len(floor_rows):
            floor = evaluate(
                real, features_of((b.image for b in train.select(floor_rows)), len(floor_rows)), seed=config.seed
            )
        results: list[dict[str, Any]] = []
        for scale, path in samples.items():
            generated = features_of(_stored_images(path, evaluation.batch_size), config.sampling.images)
            results.append({"guidance_scale": scale, **evaluate(real, generated, seed=config.seed)})
    if config.annotation.layout == "boxes":
        encoder = patch_encoder(make_encoder(config, train, distributed.alone(train.device))[0], "boxes")
        layout = load_layout(config.layout_folder, train.manifest.digest).objects
        assert isinstance(layout, Boxes)
        for row, path in zip(results, samples.values(), strict=True):
            row |= layout_agreement(encoder, layout, path, config.annotation.batch_size)
    return {
        "network": network.name,
        "reference": {"split": reference.manifest.split, "images": len(reference_rows)},
        "samples": config.sampling.images,
        "results": results,
        "real": floor,
    }


def layout_agreement(encoder: PatchEncoder, layout: Boxes, path: Path, batch_size: int) -> dict[str, float]:
    """How far the samples of a file follow the boxes that they were asked for.

    The share of samples in which LOST finds a box that covers the asked one with an IoU of one half or more, and the
    same for the box that another sample was asked for, which is chance.
    """
    found = concatenate([find_boxes(encoder(batch)) for batch in _stored_images(path, batch_size)]).corners
    with np.load(path, allow_pickle=False) as file:
        rows = file["row"]
    asked = [layout.corners[layout.image_offsets[row] : layout.image_offsets[row + 1]] for row in rows]
    return {
        "layout_agreement": corloc(found, asked),
        "layout_agreement_by_chance": corloc(found, [*asked[1:], asked[0]]),
    }


def choose_real_images(config: Config, train: Loader, reference: Loader) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of the reference, and rows of other, training images that give the floor of the metrics, as many as samples.

    Where the training images are the reference, what is left of them gives the floor, if that is enough to measure."""
    order = np.random.default_rng(config.seed).permutation(len(reference))
    rows = order[: config.evaluation.reference_images]
    others = order[len(rows) :] if reference is train else np.random.default_rng(config.seed).permutation(len(train))
    floor = others[: config.sampling.images]
    return np.sort(rows), np.sort(floor) if len(floor) >= SMALLEST_SET else floor[:0]


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
        figures = ", ".join(f"{name} {value:.4g}" for name, value in row.items() if name != "guidance_scale")
        telemetry.say(f"  guidance {row['guidance_scale']}: {figures}")


def _pixels(loader: Loader, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Images uint8 [n, H, W, 3] of rows of the data set."""
    return torch.cat([batch.image for batch in loader.select(rows)]).permute(0, 2, 3, 1).cpu().numpy()


def _stored_images(path: Path, batch_size: int) -> Iterator[Tensor]:
    with np.load(path, allow_pickle=False) as file:
        images = torch.from_numpy(file["image"])
    for batch in images.split(batch_size):
        yield batch.permute(0, 3, 1, 2)


def main() -> None:
    run_program("evaluate", run)


if __name__ == "__main__":
    main()
