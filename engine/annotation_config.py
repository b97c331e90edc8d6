"""What replaces labels, as data: the stage `annotate`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from engine.compilation import Choice
from engine.config_error import require
from sgdm.annotate.names import (
    CONTROLS,
    BoxFinder,
    ClusterMethod,
    FeatureChoice,
    Network,
    Objective,
    SegmentFinder,
)


@dataclass(frozen=True, kw_only=True)
class SelfSupervisionConfig:
    objective: Objective = "neighbours"
    """What the encoder learns from: the `neighbours` of each image, or, by lightly, views of each: `dino`, `simclr`,
    `vicreg`."""
    network: Network = "convnet"
    """`convnet`, fast on a CPU, or `vit`, a small transformer."""
    images: int = 240_000
    """Training budget, in images seen."""

    def __post_init__(self) -> None:
        require(self.images >= 1, f"annotation.self_supervision.images is {self.images}: give at least 1")


@dataclass(frozen=True, kw_only=True)
class BoxesConfig:
    finder: BoxFinder = "lost"
    """`lost`, or `normalised-cut` (TokenCut, MaskCut)."""
    objects: int = 1
    """At most so many boxes an image: each is found in what those before it have left."""

    def __post_init__(self) -> None:
        require(1 <= self.objects <= 100, f"annotation.boxes.objects is {self.objects}: give 1 to 100")


@dataclass(frozen=True, kw_only=True)
class SegmentsConfig:
    finder: SegmentFinder = "stego"
    """`stego`, a head that is trained to make patches that the frozen features hold alike more alike, and others less;
    without training, `k-means` of patches, or `lost` or `normalised-cut`, k-means of the regions that these cut each
    image into."""
    num_segments: int = 21
    """Classes of segments."""
    images: int = 20_000
    """Training budget of stego, in images seen."""
    shifts: tuple[float, float, float] | None = None
    """How much alike patches must be for stego to draw them together, of one image, of neighbours, of any two; none:
    as much as most are, which is measured. 0.18 0.12 0.46 are those of the paper for DINO's ViT-S/8."""
    crf: bool = False
    """Let a dense conditional random field draw the borders along those of the image. Needs the extra `crf`."""

    def __post_init__(self) -> None:
        require(
            2 <= self.num_segments <= 254, f"annotation.segments.num_segments is {self.num_segments}: give 2 to 254"
        )
        require(self.images >= 1, f"annotation.segments.images is {self.images}: give at least 1")


@dataclass(frozen=True, kw_only=True)
class AnnotationConfig:
    num_clusters: int = 100
    """K, the number of clusters; 0 trains without any condition. `sgdm annotate RECIPE --suggest` says how many."""
    clusters: ClusterMethod = "k-means"
    """Spherical `k-means`, or `temi`, which goes on from there to clusters that nearest neighbours share. Controls for
    experiments: `random` ids; the `labels` of the source; `split-labels`, each label's images at random among
    num_clusters / labels ids."""
    also_clusters: tuple[int, ...] = ()
    """Other K to cluster for in the same pass over the features: a run that asks for one finds it done."""
    iterations: int = 30
    """k-means iterations."""
    encoder: str = "auto"
    """Feature network: `auto` (DINO ViT-S/16 where its weights are at hand, else `self-supervised`),
    `self-supervised` (trained on these images), `pixels` (PCA-whitened), or the name of any timm model."""
    weights: Path | None = None
    """Weight file of a timm encoder (safetensors or a state dict); none: timm's own cache or hub."""
    features: FeatureChoice = field(default_factory=FeatureChoice)
    self_supervision: SelfSupervisionConfig = field(default_factory=SelfSupervisionConfig)
    layout: Literal["none", "boxes", "segments"] = "none"
    """Where things are, as a second guide: `boxes` beside the cluster; `segments`, classes of dense features, instead
    of it. Both from features without labels."""
    boxes: BoxesConfig = field(default_factory=BoxesConfig)
    segments: SegmentsConfig = field(default_factory=SegmentsConfig)
    batch_size: int = 256
    """Images a forward pass of the encoder."""
    shard_images: int | None = None
    """Images a shard of what is extracted, the most that a kill costs; none: 65,536, or a process's share of fewer."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of a timm encoder; `auto`: bf16 where the device is fast at it."""
    compile: Choice = "auto"
    """Compile a timm encoder; `auto`: on a GPU only."""

    def __post_init__(self) -> None:
        require(
            self.layout != "segments" or self.num_clusters == 0,
            f"annotation.num_clusters is {self.num_clusters}, but segments guide instead of clusters: give 0",
        )
        require(
            self.num_clusters == 0 or self.num_clusters >= 2,
            f"annotation.num_clusters is {self.num_clusters}: give at least 2, or 0 for no condition",
        )
        require(
            all(number >= 2 for number in self.also_clusters),
            f"annotation.also_clusters is {self.also_clusters}: give at least 2 each",
        )
        require(
            not self.also_clusters or (self.num_clusters > 0 and self.clusters not in CONTROLS),
            f"annotation.also_clusters is {self.also_clusters}, but there is no pass over features that they could "
            f"share: annotation.num_clusters is {self.num_clusters}, annotation.clusters {self.clusters}",
        )
        for name in ("iterations", "batch_size"):
            require(getattr(self, name) >= 1, f"annotation.{name} is {getattr(self, name)}: give at least 1")
        require(
            self.shard_images is None or self.shard_images >= 1,
            f"annotation.shard_images is {self.shard_images}: give at least 1",
        )
