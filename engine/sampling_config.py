"""How samples are drawn and measured, as data: the stages `sample` and `evaluate`, and sweeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tyro

from engine import axes
from engine.config_error import require
from sgdm.data.sources import Split

SMALLEST_SET = 10
"""Images; the Inception score takes ten parts, precision and recall the fifth neighbour of each."""


Sampler = Literal["ddpm", "ddim", "heun", "dpmpp"]


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    guidance_scales: tuple[float, ...] = (0.0, 1.0, 2.0, 3.0)
    """Guidance scales w to sample at: eps = eps_null + w (eps_cond - eps_null); 0 is unconditional, 1 conditional."""
    images: Annotated[int, tyro.conf.arg(aliases=("--num",))] = 10_000
    """Images a guidance scale, or a point of a sweep."""
    sampler: Sampler = "ddim"
    """Sampler; `dpmpp` is DPM-Solver++(2M), `heun` the second-order one of EDM (two passes a step)."""
    steps: int = 250
    """Sampling steps."""
    eta: float = 0.0
    """Noise of DDIM: 0 deterministic, 1 as much as DDPM."""
    guidance_interval: tuple[float, float] | None = None
    """Noise levels sigma (low, high) between which guidance acts; outside, one conditional pass. None: everywhere."""
    ema_decay: float | None = None
    """Which average of the weights draws the samples; none: the first of training.ema_decays."""
    ema_length: float | None = None
    """Draw with the average of this length that `sgdm ema` has made, instead of one of training.ema_decays."""
    weak_model: Path | None = None
    """Folder of averaged weights of an earlier checkpoint, or of a smaller network, away from which autoguidance leads,
    instead of away from the null condition; guidance scales are then of it. None: classifier-free guidance."""
    clusters: Literal["frequency", "balanced"] = "frequency"
    """How clusters are drawn: by their share of the training images, or all of them equally often."""
    cluster: Annotated[int | None, tyro.conf.arg(aliases=("--cluster",))] = None
    """Draw this cluster alone."""
    batch_size: int | None = None
    """Images a forward pass; has no effect on the images. None: found by trying."""
    format: Annotated[Literal["npz", "png", "webdataset", "beton"], tyro.conf.arg(aliases=("--format",))] = "npz"
    """What samples are written as: one `npz`, a folder of `png`, tar files as `webdataset` reads them, or a `beton`, to
    train on."""
    interpolate: Annotated[tuple[int, int] | None, tyro.conf.arg(aliases=("--interpolate",))] = None
    """Draw pages of images on the way from one cluster to another, instead of the run's samples."""
    layout: Annotated[Path | None, tyro.conf.arg(aliases=("--layout",))] = None
    """JSON file of boxes and polygons to draw images for, instead of the run's samples: see engine/layout_file.py."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"sampling.{name} is {value}: give at least 1")
        require(
            self.cluster is None or self.clusters == "frequency",
            f"sampling.cluster is {self.cluster}, and sampling.clusters {self.clusters}: give one of them",
        )
        require(
            self.guidance_interval is None or self.guidance_interval[0] < self.guidance_interval[1],
            f"sampling.guidance_interval is {self.guidance_interval}, which is empty: give a lower and a higher sigma",
        )
        require(self.images >= SMALLEST_SET, f"sampling.images is {self.images}: metrics need {SMALLEST_SET}")
        require(len(self.guidance_scales) >= 1, "sampling.guidance_scales is empty: give at least one, such as 2")
        require(
            self.ema_decay is None or self.ema_length is None,
            f"sampling.ema_decay is {self.ema_decay} and sampling.ema_length {self.ema_length}: give one of them",
        )


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    network: Literal["auto", "inception", "efficientnet-lite0"] = "auto"
    """Feature network of the metrics; `auto`: clean-fid's Inception where its weights are at hand, else the offline
    network. Every printed number carries its name."""
    weights: Path | None = None
    """Weight file of Inception (clean-fid's inception-2015-12-05.pt)."""
    reference: Split = "val"
    """Split that samples are compared with."""
    reference_images: int | None = 10_000
    """At most so many images of the reference split; none: all of them."""
    backbone: str | None = None
    """A timm backbone whose Fréchet distance is measured as well, such as vit_large_patch14_dinov2.lvd142m."""
    backbone_weights: Path | None = None
    """Its weight file; none: timm's own cache or hub."""
    replicas: Annotated[bool, tyro.conf.arg(aliases=("--replicas",))] = False
    """Look for copies of training images among the samples, by features of the backbone, or else of the network."""
    keep_samples: Annotated[bool, tyro.conf.arg(aliases=("--keep-samples",))] = False
    """Write the samples of every point of a sweep too, in sampling.format; else no image is kept but the first 64."""
    batch_size: int = 250
    """Images a forward pass of the feature network."""

    def __post_init__(self) -> None:
        require(self.batch_size >= 1, f"evaluation.batch_size is {self.batch_size}: give at least 1")
        require(
            self.backbone is not None or self.backbone_weights is None,
            f"evaluation.backbone_weights is {self.backbone_weights}: name their evaluation.backbone too",
        )
        require(
            self.reference_images is None or self.reference_images >= SMALLEST_SET,
            f"evaluation.reference_images is {self.reference_images}: metrics need {SMALLEST_SET}",
        )


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Axes of `sgdm evaluate`, as text: 0:4:0.25 is from 0 to 4 by 0.25, 18,32 a list. None: what sampling says."""

    guidance: str | None = None
    """Guidance scales."""
    steps: str | None = None
    """Numbers of sampling steps."""
    sampler: str | None = None
    """Samplers, as in ddim,dpmpp."""
    ema: str | None = None
    """Averages of the weights: decays that were tracked, or lengths, which are made of the run's snapshots."""
    eta: str | None = None
    """Noise of DDIM."""
    interval: str | None = None
    """Noise levels between which guidance acts, as in 0.3..5,none."""
    seeds: int = 1
    """Each point is measured with so many seeds."""
    search: Literal["grid", "coarse-to-fine"] = "grid"
    """Measure all points, or find the best with a fraction of them: see engine/search.py."""
    metric: Literal["frechet_distance", "kernel_distance", "backbone_frechet_distance"] = "frechet_distance"
    """What is least at the best point."""

    def __post_init__(self) -> None:
        require(self.seeds >= 1, f"sweep.seeds is {self.seeds}: give at least 1")
        values = self.values  # an axis that does not parse is an error at once
        require(
            self.search == "grid" or bool(values),
            f"sweep.search is {self.search}, but there is nothing to search: give axes, as in --sweep.guidance 0:4:1",
        )

    @property
    def asked(self) -> bool:
        """Whether there is anything to sweep over."""
        return bool(self.values) or self.seeds > 1

    @property
    def values(self) -> dict[str, tuple[Any, ...]]:
        """The values of every axis that is given."""
        parse: dict[str, Callable[[str, str], tuple[Any, ...]]] = {
            "guidance": axes.numbers,
            "steps": axes.whole_numbers,
            "sampler": lambda option, text: axes.names(option, text, get_args(Sampler)),
            "ema": axes.numbers,
            "eta": axes.numbers,
            "interval": axes.intervals,
        }
        texts = {name: getattr(self, name) for name in parse}
        return {name: parse[name](f"sweep.{name}", text) for name, text in texts.items() if text is not None}
