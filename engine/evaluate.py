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
from engine.config import Config, to_plain
from engine.console import run_program
from engine.info import devices, versions
from engine.report import write_report
from engine.sample import expected_samples, is_whole
from sgdm.data.loader import Loader
from sgdm.files import fingerprint, read_json, write_json
from sgdm.metrics.evaluate import evaluate
from sgdm.metrics.networks import Features, extract_features, load_network


def run(config: Config) -> None:
    samples = expected_samples(config)
    for path, key in samples.values():
        if not is_whole(path, key):
            raise ValueError(f"{path} is missing or of another checkpoint or configuration: run sample first")
    metrics_path = config.run / "metrics.json"
    key = fingerprint(to_plain(config.evaluation), [key for _, key in samples.values()])
    device = distributed.default_device()
    train = Loader(
        config.data.folder / "train.beton", batch_size=config.evaluation.batch_size, device=device, seed=config.seed
    )
    if metrics_path.is_file() and read_json(metrics_path).get("key") == key:
        telemetry.skip("evaluate", metrics_path)
    else:
        with telemetry.stage(config.run, "evaluate") as record:
            paths = {scale: path for scale, (path, _) in samples.items()}
            metrics = measure(config, train, paths, device)
            write_json(metrics_path, {**metrics, "key": key})
            record.images = len(paths) * config.sampling.images
            record.result = str(metrics_path)
        print_results(metrics)
    report = write_report(
        config.run,
        config.data.folder,
        config.annotation_folder,
        {**versions(), "device": ", ".join(devices())},
        lambda rows: _pixels(train, rows),
    )
    telemetry.say(f"report -> {report}")


def measure(config: Config, train: Loader, samples: dict[float, Path], device: torch.device) -> dict[str, Any]:
    """What metrics.json holds: every guidance scale, and real training images as the floor, against a reference."""
    evaluation = config.evaluation
    network = load_network(evaluation.network, evaluation.weights, device)
    reference, reference_rows, floor_rows = choose_real_images(config, train)
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
        results = []
        for scale, path in samples.items():
            generated = features_of(_stored_images(path, evaluation.batch_size), config.sampling.images)
            results.append({"guidance_scale": scale, **evaluate(real, generated, seed=config.seed)})
    return {
        "network": network.name,
        "reference": {"split": reference.manifest.split, "images": len(reference_rows)},
        "samples": config.sampling.images,
        "results": results,
        "real": floor,
    }


def choose_real_images(config: Config, train: Loader) -> tuple[Loader, NDArray[np.int64], NDArray[np.int64]]:
    """The reference split with its rows, and the rows of other, training images that give the floor of the metrics.

    Without a val split the training images are the reference; what is left of them gives the floor."""
    evaluation, wanted = config.evaluation, config.sampling.images
    order = np.random.default_rng(config.seed).permutation(len(train))
    val_path = config.data.folder / "val.beton"
    if evaluation.reference == "val" and val_path.exists():
        val = Loader(val_path, batch_size=evaluation.batch_size, device=train.device, seed=config.seed)
        rows = np.random.default_rng(config.seed).permutation(len(val))[: evaluation.reference_images]
        return val, np.sort(rows), np.sort(order[:wanted])
    if evaluation.reference == "val":
        telemetry.say("evaluate: there is no val split; the reference is training images")
    split = min(evaluation.reference_images, len(train))
    return train, np.sort(order[:split]), np.sort(order[split : split + wanted])


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
