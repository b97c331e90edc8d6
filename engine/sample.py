"""Draw images with averaged weights at every guidance scale: samples/guidance-<w>.npz in the run folder."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed
from numpy.typing import NDArray
from torch import Tensor

from engine import checkpoint, compilation, distributed, telemetry
from engine.config import Config, to_plain
from engine.console import run_program
from engine.distributed import Ranks
from sgdm.annotate.store import load_annotation
from sgdm.conditions import Condition
from sgdm.data.beton import check_beton
from sgdm.diffusion.denoiser import Denoiser
from sgdm.diffusion.guidance import GuidedDenoiser
from sgdm.diffusion.noise import NoiseSource
from sgdm.diffusion.objective import make_objective
from sgdm.diffusion.samplers import sample
from sgdm.files import atomic_write, fingerprint, sha256_file
from sgdm.models.unet import UNet
from sgdm.progress import Advance


@dataclass(frozen=True)
class Plan:
    """What is to be sampled, from what."""

    weights: Path
    """Folder of the averaged weights."""
    frequencies: NDArray[np.float64] | None
    """Each cluster's share of the training images, [K]; None where the network is unconditional."""
    files: dict[float, tuple[Path, str]]
    """For every guidance scale its file and the digest of everything that decides its images."""


def make_plan(config: Config) -> Plan:
    """ValueError where there is no checkpoint, or none that fits."""
    data_digest = check_beton(config.data.folder / "train.beton").digest
    last = checkpoint.newest(config.run)
    if last is None:
        raise ValueError(f"{config.run} has no checkpoint: run train first")
    ids = frequencies = None
    if config.annotation.num_clusters:
        annotation = load_annotation(config.annotation_folder, data_digest)
        ids, frequencies = annotation.clusters, annotation.frequencies
    checkpoint.check(last, config, checkpoint.provenance(data_digest, ids))
    weights = checkpoint.average_folder(last, config.ema_decay)
    sampling = to_plain(config.sampling)
    del sampling["guidance_scales"], sampling["batch_size"]
    common = fingerprint(
        sha256_file(weights / "model.safetensors"),
        to_plain(config.diffusion),
        sampling,
        config.seed,
        None if frequencies is None else frequencies.tolist(),
    )
    scales = config.sampling.guidance_scales if frequencies is not None else (0.0,)
    folder = config.run / "samples"
    files = {scale: (folder / f"guidance-{scale:g}.npz", fingerprint(common, scale)) for scale in scales}
    return Plan(weights, frequencies, files)


def is_whole(path: Path, key: str) -> bool:
    """Whether a file of samples exists, undamaged, and was drawn by this key."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return str(file["key"]) == key
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        return False


def run(config: Config) -> None:
    plan = make_plan(config)
    missing = {scale: file for scale, file in plan.files.items() if not is_whole(*file)}
    ranks = distributed.initialize()
    if not missing:
        if ranks.first:
            telemetry.skip("sample", config.run / "samples")
        return
    images = config.sampling.images
    ids = None if plan.frequencies is None else draw_clusters(plan.frequencies, images, config.seed)
    with telemetry.stage(config, "sample", visible=ranks.first) as record:
        denoiser = load_denoiser(config, plan.weights, ranks)
        total = images * len(missing)
        with telemetry.progress("sample", total, visible=ranks.first) as advance:
            for scale, (path, key) in missing.items():
                pixels = draw(config, denoiser, scale, ids, ranks, advance)
                if ranks.first:
                    with atomic_write(path) as temporary:
                        cluster = np.full(images, -1) if ids is None else ids
                        np.savez(temporary, image=pixels, cluster=cluster, key=np.array(key))
        record.images, record.result = total, str(config.run / "samples")


def draw_clusters(frequencies: NDArray[np.float64], images: int, seed: int) -> NDArray[np.int64]:
    """Cluster ids [images] drawn by the clusters' share of the training images; id n depends on (seed, n) alone."""
    uniform = np.random.default_rng(seed).random(images)
    ids = np.searchsorted(np.cumsum(frequencies), uniform * frequencies.sum(), side="right")
    return np.minimum(ids, len(frequencies) - 1)


def load_denoiser(config: Config, weights: Path, ranks: Ranks) -> Denoiser:
    network = UNet.from_pretrained(weights, expected=config.network, backends=config.training.backends)
    network = network.to(ranks.device).eval()
    bf16 = distributed.computes_in_bf16(config.training.precision, ranks.device)

    def forward(x: Tensor, time: Tensor, condition: Condition | None) -> Tensor:
        with torch.autocast(ranks.device.type, torch.bfloat16, enabled=bf16):
            return network(x, time, condition)

    call = compilation.choose(config.training.compile, ranks.device)(forward)
    objective = make_objective(
        config.diffusion.prediction, config.diffusion.schedule, config.diffusion.min_snr_gamma
    ).to(ranks.device)
    return objective.denoiser(call)


@torch.inference_mode()
def draw(
    config: Config,
    denoiser: Denoiser,
    scale: float,
    ids: NDArray[np.int64] | None,
    ranks: Ranks,
    advance: Advance,
) -> NDArray[np.uint8]:
    """Images uint8 [images, H, W, 3] at one guidance scale; image n is the same for any batch and any processes."""
    sampling = config.sampling
    if ids is not None:
        denoiser = GuidedDenoiser(denoiser, scale, sampling.guidance_interval, config.annotation.num_clusters)
    # A guided pass holds conditional and null images: half the images keep the compiled shape.
    batch_size = sampling.batch_size if scale in (0.0, 1.0) else max(1, sampling.batch_size // 2)
    own = np.arange(ranks.rank, sampling.images, ranks.world_size)
    share = -(-sampling.images // ranks.world_size)
    pixels = torch.zeros(share, config.data.image_size, config.data.image_size, 3, dtype=torch.uint8)
    for start in range(0, len(own), batch_size):
        numbers = own[start : start + batch_size]
        padded = np.resize(numbers, batch_size)  # a full last batch, so that nothing is compiled anew
        noise = NoiseSource(
            config.seed, padded.tolist(), (3, config.data.image_size, config.data.image_size), ranks.device
        )
        condition = None
        if ids is not None:
            condition = Condition(cluster=torch.from_numpy(ids[padded]).to(ranks.device))
        x = sample(denoiser, condition, noise, sampler=sampling.sampler, steps=sampling.steps, eta=sampling.eta)
        quantised = ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        pixels[start : start + len(numbers)] = quantised[: len(numbers)].permute(0, 2, 3, 1).cpu()
        advance(len(numbers) * ranks.world_size)
    return gather(pixels, ranks)[: sampling.images].numpy()


def gather(part: Tensor, ranks: Ranks) -> Tensor:
    """The parts [n, ...] of all processes, interleaved: row i of process r is row i * world_size + r."""
    if ranks.world_size == 1:
        return part
    parts = [torch.empty_like(part, device=ranks.device) for _ in range(ranks.world_size)]
    torch.distributed.all_gather(parts, part.to(ranks.device))
    return torch.stack(parts, dim=1).flatten(0, 1).cpu()


def main() -> None:
    run_program("sample", run)


if __name__ == "__main__":
    main()
