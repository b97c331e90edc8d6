"""Draw images with averaged weights at every guidance scale: samples/guidance-<w>.npz in the run folder."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from engine import checkpoint, compilation, distributed, posthoc, telemetry
from engine.config import Config, to_plain
from engine.console import run_program
from engine.distributed import Ranks
from engine.guidance import Guidance, load_guidance, make_guides
from engine.layout_file import read_layouts
from engine.sheets import layout_lines, layout_sheet
from sgdm.conditions import Condition, make_condition
from sgdm.data.beton import check_beton
from sgdm.data.guides import Guides
from sgdm.diffusion import guidance as guiding
from sgdm.diffusion.noise import NoiseSource
from sgdm.diffusion.objective import make_objective
from sgdm.diffusion.sampling import Sampling
from sgdm.files import atomic_write, fingerprint, sha256_file
from sgdm.models.embedding import Embedded
from sgdm.models.unet import UNet
from sgdm.progress import Advance

EXAMPLE_LAYOUTS, EXAMPLES = 6, 6
"""For the report: so many images of each of so many layouts."""


class Asked(NamedTuple):
    """What images are to be of: image n shows row `rows[n]` of the guides."""

    guides: Guides
    rows: NDArray[np.int64]

    def of(self, numbers: NDArray[np.int64], segments: int) -> Condition | None:
        return make_condition(*self.guides.draw(self.rows[numbers]), segments)


@dataclass(frozen=True)
class Plan:
    """What is to be sampled, from what."""

    weights: Path
    """Folder of the averaged weights."""
    guidance: Guidance
    files: dict[float, tuple[Path, str]]
    """For every guidance scale its file and the digest of everything that decides its images."""


def make_plan(config: Config) -> Plan:
    """ValueError where there is no checkpoint, or none that fits."""
    data_digest = check_beton(config.data.folder / "train.beton").digest
    last = checkpoint.newest(config.run)
    if last is None:
        raise ValueError(f"{config.run} has no checkpoint: run train first")
    guidance = load_guidance(config, data_digest)
    checkpoint.check(last, config, guidance.trained_on)
    tracked = config.sampling.ema_length is None
    weights = checkpoint.average_folder(last, config.ema_decay) if tracked else posthoc.find(config)
    sampling = to_plain(config.sampling)
    del sampling["guidance_scales"], sampling["batch_size"], sampling["layout"], sampling["ema_length"]
    common = fingerprint(
        sha256_file(weights / "model.safetensors"),
        to_plain(config.diffusion),
        sampling,
        config.seed,
        None if guidance.frequencies is None else guidance.frequencies.tolist(),
        guidance.trained_on["layout"],
    )
    guided = guidance.clusters is not None or guidance.layout is not None
    scales = config.sampling.guidance_scales if guided else (0.0,)
    folder = config.run / "samples"
    files = {scale: (folder / f"guidance-{scale:g}.npz", fingerprint(common, scale)) for scale in scales}
    return Plan(weights, guidance, files)


def is_whole(path: Path, key: str) -> bool:
    """Whether a file of samples exists, undamaged, and was drawn by this key."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return str(file["key"]) == key
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        return False


def run(config: Config) -> None:
    plan = make_plan(config)
    if config.sampling.layout is not None:
        draw_layouts(config, plan, config.sampling.layout)
        return
    missing = {scale: file for scale, file in plan.files.items() if not is_whole(*file)}
    ranks = distributed.initialize()
    if not missing:
        if ranks.first:
            telemetry.skip("sample", config.run / "samples")
        return
    images = config.sampling.images
    with telemetry.stage(config, "sample", visible=ranks.first) as record:
        sample = load_sampling(config, plan.weights, ranks)
        asked, examples = ask(config, plan.guidance, ranks.device)
        total = (images + len(examples)) * len(missing)
        with telemetry.progress("sample", total, visible=ranks.first) as advance:
            for scale, (path, key) in missing.items():
                numbers = np.arange(images)
                found = {"image": draw(config, sample, scale, asked, numbers, ranks, advance), **tell(asked, numbers)}
                if len(examples):
                    found["example"] = draw(config, sample, scale, asked, examples, ranks, advance)
                    found |= {f"example_{name}": value for name, value in tell(asked, examples).items()}
                if ranks.first:
                    with atomic_write(path) as temporary:
                        np.savez(temporary, allow_pickle=False, key=np.array(key), **found)
        record.images, record.result = total, str(config.run / "samples")


def ask(config: Config, guidance: Guidance, device: torch.device) -> tuple[Asked | None, NDArray[np.int64]]:
    """What the samples are to be of, and the numbers of the examples for the report, which come after theirs.

    Clusters are drawn by their share of the training images; a layout, with the cluster that goes with it, is that of
    a random training image. Examples show the first layouts several times over.
    """
    images, none = config.sampling.images, np.arange(0)
    if guidance.layout is not None:
        drawn = np.random.default_rng(config.seed).integers(0, guidance.layout.num_images, images)
        rows = np.concatenate([drawn, np.repeat(drawn[:EXAMPLE_LAYOUTS], EXAMPLES)])
        asked = Asked(make_guides(config, guidance.clusters, guidance.layout, device), rows)
        return asked, np.arange(images, len(rows))
    if guidance.frequencies is not None:
        ids = draw_clusters(guidance.frequencies, images, config.seed)
        return Asked(make_guides(config, ids, None, device), np.arange(images)), none
    return None, none


def tell(asked: Asked | None, numbers: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """What a file of samples says of its images: cluster int64 [n], -1 without; where a layout guides, the row of the
    training image it is of, and the layout as drawn, uint8 [n, H, W]."""
    if asked is None:
        return {"cluster": np.full(len(numbers), -1)}
    cluster, layout = asked.guides.draw(asked.rows[numbers])
    found = {"cluster": np.full(len(numbers), -1) if cluster is None else cluster.cpu().numpy()}
    if layout is not None:
        found |= {"row": asked.rows[numbers], "layout": layout.reshape(-1, *layout.shape[-2:]).cpu().numpy()}
    return found


def draw_layouts(config: Config, plan: Plan, path: Path) -> None:
    """Images for the layouts of a file, a page of them for every guidance scale."""
    if plan.guidance.layout is None:
        raise ValueError(
            f"{config.run} is not guided by layouts (annotation.layout is none), so {path} cannot be drawn: "
            "train a run with --annotation.layout boxes or segments"
        )
    by_hand = read_layouts(path, config)
    ranks = distributed.initialize()
    guides = make_guides(config, by_hand.clusters, by_hand.polygons, ranks.device)
    asked = Asked(guides, np.repeat(np.arange(len(by_hand.counts)), by_hand.counts))
    numbers = np.arange(len(asked.rows))
    sample = load_sampling(config, plan.weights, ranks)
    total = len(numbers) * len(plan.files)
    with telemetry.progress("sample, layouts", total, visible=ranks.first) as advance:
        for scale in plan.files:
            pixels = draw(config, sample, scale, asked, numbers, ranks, advance)
            if ranks.first:
                stem = config.run / "samples" / f"{path.stem}-{scale:g}"
                told = tell(asked, numbers)
                with atomic_write(stem.with_name(f"{stem.name}.npz")) as temporary:
                    np.savez(temporary, allow_pickle=False, image=pixels, **told)
                page = layout_sheet(layout_lines(told["layout"], pixels, told["row"], config.segments))
                with atomic_write(stem.with_name(f"{stem.name}.png")) as temporary:
                    Image.fromarray(page).save(temporary, format="png")
                telemetry.say(f"sample: guidance {scale:g} -> {stem}.png")


def draw_clusters(frequencies: NDArray[np.float64], images: int, seed: int) -> NDArray[np.int64]:
    """Cluster ids [images] drawn by the clusters' share of the training images; id n depends on (seed, n) alone."""
    uniform = np.random.default_rng(seed).random(images)
    ids = np.searchsorted(np.cumsum(frequencies), uniform * frequencies.sum(), side="right")
    return np.minimum(ids, len(frequencies) - 1)


def load_sampling(config: Config, weights: Path, ranks: Ranks) -> Sampling:
    network = UNet.from_pretrained(weights, expected=config.network, backends=config.training.backends)
    network = network.to(ranks.device).eval()
    bf16 = distributed.computes_in_bf16(config.training.precision, ranks.device)

    def forward(x: Tensor, time: Tensor, condition: Condition | Embedded | None) -> Tensor:
        with torch.autocast(ranks.device.type, torch.bfloat16, enabled=bf16):
            return network(x, time, condition)

    def embed(condition: Condition) -> Embedded:
        with torch.autocast(ranks.device.type, torch.bfloat16, enabled=bf16):
            return network.embed(condition)

    return Sampling(
        forward,
        make_objective(config.diffusion.prediction, config.diffusion.schedule, config.diffusion.min_snr_gamma),
        embed=embed,
        num_clusters=config.annotation.num_clusters or None,
        compile=compilation.choose(config.training.compile, ranks.device),
    )


@torch.inference_mode()
def draw(
    config: Config,
    sample: Sampling,
    scale: float,
    asked: Asked | None,
    numbers: NDArray[np.int64],
    ranks: Ranks,
    advance: Advance,
) -> NDArray[np.uint8]:
    """The images of these numbers, uint8 [n, H, W, 3], at one guidance scale; each is the same whatever the batch, the
    processes and the other numbers."""
    sampling, size = config.sampling, config.data.image_size
    guidance = guiding.UNGUIDED if asked is None else guiding.Guidance(scale, sampling.guidance_interval)
    # A guided pass holds conditional and null images: half the images keep the compiled shape.
    batch_size = sampling.batch_size if scale in (0.0, 1.0) else max(1, sampling.batch_size // 2)
    own = numbers[ranks.rank :: ranks.world_size]
    share = -(-len(numbers) // ranks.world_size)
    pixels = torch.zeros(share, size, size, 3, dtype=torch.uint8)
    for start in range(0, len(own), batch_size):
        some = own[start : start + batch_size]
        padded = np.resize(some, batch_size)  # a full last batch, so that nothing is compiled anew
        noise = NoiseSource(config.seed, padded.tolist(), (3, size, size), ranks.device)
        condition = None if asked is None else asked.of(padded, config.segments)
        x = sample(
            condition,
            noise,
            sampler=sampling.sampler,
            steps=sampling.steps,
            eta=sampling.eta,
            guidance=guidance,
        )
        quantised = ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        pixels[start : start + len(some)] = quantised[: len(some)].permute(0, 2, 3, 1).cpu()
        advance(len(some) * ranks.world_size)
    return gather(pixels, ranks)[: len(numbers)].numpy()


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
