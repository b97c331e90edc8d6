"""Draws numbered images with a run's averaged weights, at any guidance, sampler and number of steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine import checkpoint, compilation, distributed, posthoc
from engine.batch_size import find_batch_size
from engine.config import Config, load_config, to_plain
from engine.distributed import Ranks
from engine.guidance import Guidance, load_guidance
from engine.points import Point
from engine.subjects import Subjects
from engine.telemetry import say
from sgdm.conditions import Condition
from sgdm.data.beton import check_beton
from sgdm.diffusion.guidance import Guidance as GuidanceScale
from sgdm.diffusion.noise import NoiseSource
from sgdm.diffusion.objective import make_objective
from sgdm.diffusion.sampling import Sampling
from sgdm.files import fingerprint, sha256_file
from sgdm.models.config import UNetConfig
from sgdm.models.pretrained import CONFIG, WEIGHTS, read_config
from sgdm.models.unet import UNet


class Trained(NamedTuple):
    """What a run draws with."""

    checkpoint: Path
    guidance: Guidance
    weak: Path | None
    """Folder of the network of autoguidance."""
    digest: str
    """Of the checkpoint's first average: tells it from that of another training."""
    common: str
    """Digest of all that decides an image beside its number, its point and the weights."""

    def key(self, point: Point, weights: str) -> str:
        """Digest of all that decides the images of a point; `weights` is that of their file."""
        plain = [point.guidance_scale, point.steps, point.sampler, point.eta, to_plain(point.interval), point.seed]
        return fingerprint(self.common, weights, plain)


def open_run(config: Config) -> Trained:
    """ValueError where there is no checkpoint, or none that fits."""
    data_digest = check_beton(config.data.folder / "train.beton").digest
    last = checkpoint.newest(config.run)
    if last is None:
        raise ValueError(f"{config.run} has no checkpoint: run train first")
    guidance = load_guidance(config, data_digest)
    checkpoint.check(last, config, guidance.trained_on)
    weak = config.sampling.weak_model
    if weak is not None:
        _check_weak_model(weak, config)
    common = fingerprint(
        distributed.computes_in_bf16(config.training.precision, distributed.default_device()),
        to_plain(config.diffusion),
        config.sampling.clusters,
        config.sampling.cluster,
        None if guidance.frequencies is None else guidance.frequencies.tolist(),
        guidance.trained_on["layout"],
        None if weak is None else sha256_file(weak / WEIGHTS),
    )
    first = checkpoint.average_folder(last, config.training.ema_decays[0])
    return Trained(last, guidance, weak, sha256_file(first / WEIGHTS), common)


class Painter:
    """A run's network on a device, ready to draw.

    Whatever a point asks for, the same one or two compiled steps draw it: other weights are copied into the network's
    own, and sampler, steps and guidance scale are numbers in a table.
    """

    def __init__(self, config: Config, trained: Trained, images: int, ranks: Ranks) -> None:
        """`images` are to be drawn at least once by all processes: a batch is no larger than a process's share."""
        self._config, self._ranks = config, ranks
        bf16 = distributed.computes_in_bf16(config.training.precision, ranks.device)
        self._dtype = torch.bfloat16 if bf16 else torch.float32
        self._network = self._ready(UNet(config.network, config.training.backends))
        weak = None
        if trained.weak is not None:
            weak = self._ready(UNet.from_pretrained(trained.weak, backends=config.training.backends))
        diffusion = config.diffusion
        self._sampling = Sampling(
            self._network,
            make_objective(diffusion.prediction, diffusion.schedule, diffusion.min_snr_gamma),
            embed=self._network.embed,
            num_clusters=config.network.num_clusters,
            weak=weak,
            weak_embed=None if weak is None else weak.embed,
            compile=compilation.choose_for_sampling(config.training.compile, ranks.device),
        )
        self._guided = config.guided
        self.batch_size = config.sampling.batch_size or find_batch_size(
            self._try, -(-images // ranks.world_size), ranks
        )
        if config.sampling.batch_size is None and ranks.first:
            say(f"sample: {self.batch_size} images a batch and process, as was found")

    def use(self, weights: Path) -> None:
        """Draws with these from now on."""
        saved = UNet.from_pretrained(weights, expected=self._config.network)
        self._network.load_state_dict(saved.state_dict())

    @torch.inference_mode()
    def draw(
        self,
        point: Point,
        subjects: Subjects | None,
        numbers: NDArray[np.int64],
        towards: tuple[int, NDArray[np.float32]] | None = None,
    ) -> Tensor:
        """The images of these numbers, at most a batch, uint8 [n, 3, H, W] on the device; each is the same in any
        company. `towards`: a cluster, and how far each image is on the way to it, [n] from 0 to 1."""
        size, device = self._config.data.image_size, self._ranks.device
        padded = np.resize(numbers, self.batch_size)  # a full batch, so that nothing is compiled anew
        condition = None if subjects is None else subjects.of(padded, self._config.segments)
        aim = None
        if towards is not None:
            other = Condition(torch.full((self.batch_size,), towards[0], device=device))
            aim = other, torch.from_numpy(np.resize(towards[1], self.batch_size)).to(device)
        image = self._sampling(
            condition,
            NoiseSource(point.seed, padded.tolist(), (3, size, size), device),
            sampler=point.sampler,
            steps=point.steps,
            eta=point.eta,
            guidance=GuidanceScale(point.guidance_scale, point.interval) if self._guided else GuidanceScale(),
            towards=aim,
        )
        return ((image + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)[: len(numbers)]

    def _ready(self, network: UNet) -> UNet:
        return network.to(self._ranks.device, self._dtype).eval().requires_grad_(False)

    @torch.inference_mode()
    def _try(self, batch_size: int) -> None:
        """A guided pass, uncompiled."""
        config, device = self._config.network, self._ranks.device
        B, size = 2 * batch_size if self._guided else batch_size, config.image_size
        condition = Condition(
            None if config.num_clusters is None else torch.zeros(B, dtype=torch.long, device=device),
            torch.zeros(B, config.num_attributes, device=device) if config.num_attributes else None,
            torch.zeros(B, config.mask_channels, size, size, device=device) if config.mask_channels else None,
        )
        noise = torch.randn(B, config.in_channels, size, size, device=device)
        self._network(noise, torch.zeros(B, device=device), condition)


def tracked_decay(config: Config, ema: float) -> float | None:
    """The decay of training.ema_decays that is meant; None where it means a length."""
    return next((decay for decay in config.training.ema_decays if f"{decay:g}" == f"{ema:g}"), None)


def average_folder(config: Config, trained: Trained, ema: float) -> Path:
    """The averaged weights of a decay that the training has tracked, or of a length that was made of its snapshots.

    ValueError, naming what there is, where there are none."""
    decay = tracked_decay(config, ema)
    return posthoc.find(config, ema) if decay is None else checkpoint.average_folder(trained.checkpoint, decay)


def _check_weak_model(folder: Path, config: Config) -> None:
    """ValueError where a network cannot guide the run's: it must take the same images, conditions and noise levels."""
    weak = read_config(folder / CONFIG, architecture="UNet")
    assert isinstance(weak, UNetConfig)
    for name in ("image_size", "in_channels", "out_channels", "num_clusters", "num_attributes", "mask_channels"):
        ours, theirs = getattr(config.network, name), getattr(weak, name)
        if ours != theirs:
            raise ValueError(
                f"sampling.weak_model {folder} has {name} {theirs}, but {config.run} has {ours}: give an earlier "
                "checkpoint of this run, or a smaller network trained on the same images and annotation"
            )
    # Of a checkpoint, or, for an average of snapshots, of the run.
    saved = next((parent / "config.yaml" for parent in folder.parents[:2] if (parent / "config.yaml").is_file()), None)
    if saved is not None:
        other: Any = load_config(saved).diffusion
        for name in ("prediction", "schedule"):
            if getattr(other, name) != getattr(config.diffusion, name):
                raise ValueError(
                    f"sampling.weak_model {folder} was trained with diffusion.{name} {getattr(other, name)}, but "
                    f"{config.run} with {getattr(config.diffusion, name)}: give a network of the same objective"
                )
