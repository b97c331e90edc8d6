"""What a run is: typed dataclasses, one a stage. A recipe (recipes.py) returns a full Config; the command line
overrides any field; `config.yaml` in the run folder is the resolved whole and runs it again."""

from __future__ import annotations

import dataclasses
import difflib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import pydantic
import tyro
import yaml

from engine.compilation import Choice
from kernels.attention import Backend as AttentionBackend
from kernels.group_norm import Backend as GroupNormBackend
from sgdm.annotate.names import (
    CONTROLS,
    BoxFinder,
    ClusterMethod,
    FeatureChoice,
    Network,
    Objective,
    SegmentFinder,
)
from sgdm.averaging import LONGEST
from sgdm.files import atomic_write, fingerprint
from sgdm.models.config import UNetConfig
from sgdm.models.layers import Backends

SMALLEST_SET = 10
"""Images; the Inception score takes ten parts, precision and recall the fifth neighbour of each."""


class ConfigError(ValueError):
    """A configuration that cannot be run; the message names the field and the way out."""


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def require_lengths(name: str, lengths: tuple[float, ...]) -> None:
    """Of averages: see sgdm/averaging.py."""
    require(
        all(0 < length < LONGEST for length in lengths) and len(set(lengths)) == len(lengths),
        f"{name} is {lengths}: give different lengths between 0 and {LONGEST:.4f}, such as 0.05",
    )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    source: str
    """Where images come from: `fashion-mnist`, or the path of a folder of images (nested, jpg/png/webp/bmp)."""
    folder: Path
    """Folder for the prepared data set: train.beton, val.beton, their manifests and annotations/."""
    image_size: int = 32
    """Side of the stored images in pixels: centre crop to a square, then antialiased resize."""
    strict: Annotated[bool, tyro.conf.arg(aliases=("--strict",))] = False
    """Stop at the first unreadable image instead of listing it in <split>.unreadable.txt and leaving it out."""

    def __post_init__(self) -> None:
        require(self.image_size >= 8, f"data.image_size is {self.image_size}: give at least 8 pixels")


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


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    prediction: Literal["eps", "x0", "v", "edm"] = "eps"
    """What the network predicts; `edm` is the preconditioning of Karras et al. 2022."""
    schedule: Literal["sqrt_linear", "linear", "cosine"] = "sqrt_linear"
    """Noise schedule of eps, x0 and v: `sqrt_linear` is the one the paper's code calls linear (T = 1000 steps)."""
    min_snr_gamma: float | None = None
    """Loss weights of Hang et al. 2023 (5 is their choice); none: plain L2 on the prediction."""
    condition_dropout: float = 0.1
    """Probability that a training image's condition is replaced by the null condition."""

    def __post_init__(self) -> None:
        require(
            0 <= self.condition_dropout <= 1,
            f"diffusion.condition_dropout is {self.condition_dropout}: a probability lies between 0 and 1",
        )
        require(
            self.prediction != "edm" or self.min_snr_gamma is None,
            "diffusion.min_snr_gamma does not apply to prediction edm, which has its own weights: leave it out",
        )


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    images: int
    """Length of the training, in images seen."""
    batch_size: int = 128
    """Global batch: images an optimizer step, over all processes and accumulation steps."""
    accumulation: int | None = None
    """Forward and backward passes an optimizer step; a process runs batch_size / (processes * accumulation) images at
    a time. None: as few as the device's memory allows."""
    activation_checkpointing: bool = False
    """Keep only what enters each block of the network, and compute the rest anew for the backward pass: a third more
    operations for a fraction of the memory."""
    flip: bool = False
    """Mirror half of the images left to right, and with each its boxes or segments."""
    learning_rate: float = 1e-4
    """AdamW step size after the warm-up."""
    weight_decay: float = 0.01
    """AdamW weight decay."""
    warmup_images: int = 64_000
    """Images over which the learning rate rises linearly from 0."""
    cooldown_images: int = 0
    """Images at the end over which the learning rate falls linearly to 0; 0: constant, as in the paper."""
    gradient_clip: float = 0.0
    """Largest gradient norm; 0: no clipping, as in the paper."""
    ema_decays: tuple[float, ...] = (0.9999,)
    """Decay a step of each average of the weights, ramped as min(decay, (1 + n) / (10 + n)) at step n."""
    ema_lengths: tuple[float, ...] = ()
    """Relative lengths sigma_rel of power-function averages kept in snapshots for `sgdm ema`, e.g. 0.05 0.1; none: no
    snapshots."""
    snapshot_images: int = 1_000_000
    """Images between two snapshots of them, one network a length each, all of them kept; there is always one at the
    end. A sixteenth of the training gives every length between two kept ones."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Compute precision; weights, averages, norms and loss stay fp32. `auto`: bf16 where the device is fast at it."""
    compile: Choice = "auto"
    """Compile the whole step with torch.compile, and the network of sample: `default`, `max-autotune` (minutes more of
    compiling, often a few percent faster), `cuda-graphs` (replayed from static buffers, for steps of many small
    kernels), `off`. `auto`: default on a GPU, off on a CPU, where it costs minutes before the first step."""
    attention: AttentionBackend = "auto"
    """Attention kernel; `auto`: the fastest that takes the tensors. `sgdm info` says which can be used here."""
    group_norm: GroupNormBackend = "auto"
    """Group norm kernel; `auto`: Triton on a GPU. `plain` leaves it to PyTorch."""
    zero_stage: Literal["auto", 0, 1, 2, 3] = "auto"
    """DeepSpeed ZeRO stage: 1 shards optimizer state and averages over processes, 2 the gradients too, 3 the weights
    too. `auto`: the first whose state takes at most half of the device's memory."""
    offload_optimizer: Literal["none", "cpu"] = "none"
    """Where masters, moments and averages lie, other than on the device (ZeRO 1 or more)."""
    offload_parameters: Literal["none", "cpu"] = "none"
    """Where weights lie while they are not needed, other than on the device (ZeRO 3)."""
    log_images: int = 10_000
    """Images between two lines of log.jsonl."""
    checkpoint_images: int = 1_000_000
    """Images between two checkpoints; there is always one at the end."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints stay on disk."""
    keep_every_images: int | None = None
    """Checkpoints at multiples of so many images stay for good."""
    keep_best: bool = False
    """The checkpoint of the least loss, a mean over the images since the one before it, stays too."""
    when_diverging: Literal["roll-back", "stop"] = "roll-back"
    """After skipped_in_a_row: go on from the last checkpoint at half the learning rate, or stop."""
    skipped_in_a_row: int = 20
    """Steps without a finite gradient, which are left out, that are too many."""
    wandb: bool = False
    """Report to Weights & Biases, beside log.jsonl and TensorBoard. Needs its package."""
    profile: Annotated[str | None, tyro.conf.arg(aliases=("--profile",), metavar="N:M")] = None
    """Trace the steps n to m after a start, as in 10:12: see RUN/profile."""

    @property
    def profiled_steps(self) -> range | None:
        """The steps n to m of profile."""
        found = re.fullmatch(r"([0-9]+):([0-9]+)", self.profile or "")
        first, last = map(int, found.groups()) if found else (0, 0)
        require(
            self.profile is None or 1 <= first <= last,
            f"training.profile is {self.profile!r}: give the first and the last step to trace, as in 10:12; the first "
            "step after a start is 1",
        )
        return None if self.profile is None else range(first, last + 1)

    @property
    def backends(self) -> Backends:
        return Backends(self.attention, self.group_norm)

    def __post_init__(self) -> None:
        for name in (
            "images",
            "batch_size",
            "accumulation",
            "log_images",
            "snapshot_images",
            "checkpoint_images",
            "keep_checkpoints",
            "keep_every_images",
            "skipped_in_a_row",
        ):
            value = getattr(self, name)
            require(value is None or value >= 1, f"training.{name} is {value}: give at least 1")
        for name in ("warmup_images", "cooldown_images", "gradient_clip", "weight_decay"):
            require(getattr(self, name) >= 0, f"training.{name} is {getattr(self, name)}: give at least 0")
        _ = self.profiled_steps
        require(self.learning_rate > 0, f"training.learning_rate is {self.learning_rate}: give more than 0")
        require(
            self.accumulation is None or self.batch_size % self.accumulation == 0,
            f"training.batch_size {self.batch_size} is no multiple of training.accumulation {self.accumulation}",
        )
        require(len(self.ema_decays) >= 1, "training.ema_decays is empty: samples are drawn with averaged weights")
        for decay in self.ema_decays:
            require(0 <= decay < 1, f"training.ema_decays holds {decay}: a decay lies in [0, 1)")
        names = {f"{decay:g}" for decay in self.ema_decays}
        require(
            len(names) == len(self.ema_decays),
            f"training.ema_decays {self.ema_decays} are the same in six digits: give different ones",
        )
        require_lengths("training.ema_lengths", self.ema_lengths)
        require(
            not self.ema_lengths or self.snapshot_images < self.images,
            f"training.snapshot_images is {self.snapshot_images:,}, so that the only snapshot is that at the end, of "
            f"{self.images:,} images: give about a sixteenth of them",
        )


@dataclass(frozen=True, kw_only=True)
class PosthocConfig:
    lengths: Annotated[tuple[float, ...], tyro.conf.arg(aliases=("--length",))] = ()
    """For `sgdm ema`: relative lengths sigma_rel of the averages that it makes of the snapshots, e.g. 0.05 0.075."""
    images: int | None = None
    """Where these averages end, in images seen; none: at the last snapshot."""

    def __post_init__(self) -> None:
        require_lengths("posthoc.lengths", self.lengths)


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    guidance_scales: tuple[float, ...] = (0.0, 1.0, 2.0, 3.0)
    """Guidance scales w to sample at: eps = eps_null + w (eps_cond - eps_null); 0 is unconditional, 1 conditional."""
    images: int = 10_000
    """Images a guidance scale."""
    sampler: Literal["ddpm", "ddim", "heun", "dpmpp"] = "ddim"
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
    batch_size: int = 250
    """Images a forward pass; has no effect on the images."""
    layout: Annotated[Path | None, tyro.conf.arg(aliases=("--layout",))] = None
    """JSON file of boxes and polygons to draw images for, instead of the run's samples: see engine/layout_file.py."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            value = getattr(self, name)
            require(value >= 1, f"sampling.{name} is {value}: give at least 1")
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
    reference: Literal["train", "val"] = "val"
    """Split that samples are compared with."""
    reference_images: int = 10_000
    """At most so many images of the reference split."""
    batch_size: int = 250
    """Images a forward pass of the feature network."""

    def __post_init__(self) -> None:
        require(self.batch_size >= 1, f"evaluation.batch_size is {self.batch_size}: give at least 1")
        require(
            self.reference_images >= SMALLEST_SET,
            f"evaluation.reference_images is {self.reference_images}: metrics need {SMALLEST_SET}",
        )


@dataclass(frozen=True, kw_only=True)
class Config:
    run: Path
    """Run folder: configuration, log, checkpoints, samples, metrics and report."""
    seed: int = 0
    """Seed of everything random: data order, noise, clusters, samples."""
    data: DataConfig
    annotation: AnnotationConfig
    model: UNetConfig = field(default_factory=UNetConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    training: TrainingConfig
    posthoc: PosthocConfig = field(default_factory=PosthocConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**64, f"seed is {self.seed}: give 0 to 2^64 - 1")
        try:
            _ = self.network
        except ValueError as error:
            raise ConfigError(f"data.image_size {self.data.image_size} does not fit model: {error}") from error
        decay = self.sampling.ema_decay
        require(
            decay is None or decay in self.training.ema_decays,
            f"sampling.ema_decay {decay} is not tracked: choose one of training.ema_decays {self.training.ema_decays}",
        )

    @property
    def network(self) -> UNetConfig:
        """The network to build: image size and number of clusters follow the data and the annotation."""
        annotation = self.annotation
        return dataclasses.replace(
            self.model,
            image_size=self.data.image_size,
            num_clusters=annotation.num_clusters or None,
            mask_channels={"none": 0, "boxes": 1, "segments": annotation.segments.num_segments}[annotation.layout],
            num_attributes=self.segments,
        )

    @property
    def ema_decay(self) -> float:
        """The average that draws samples."""
        return self.training.ema_decays[0] if self.sampling.ema_decay is None else self.sampling.ema_decay

    @property
    def segments(self) -> int:
        """Classes of segments that guide the network; 0 where none do."""
        return self.annotation.segments.num_segments if self.annotation.layout == "segments" else 0

    @property
    def features_folder(self) -> Path:
        """Folders of annotations are named by all that decides them, so that runs on one data set never overwrite each
        other's, and find what others have made."""
        return self._annotation_folder("features", *self._encoder, self.annotation.features)

    @property
    def clusters_folder(self) -> Path:
        """The clusters that guide the run (sgdm/annotate/cluster_set.py)."""
        return self.clusters_folder_of(self.annotation.num_clusters)

    def clusters_folder_of(self, num_clusters: int) -> Path:
        """Those of annotation.num_clusters, or of one of annotation.also_clusters."""
        annotation = self.annotation
        decisive = (
            () if annotation.clusters in CONTROLS else (*self._encoder, annotation.features, annotation.iterations)
        )
        return self._annotation_folder(f"{annotation.clusters}-{num_clusters}", *decisive)

    @property
    def layout_folder(self) -> Path:
        """The layout set (sgdm/annotate/layout.py) of annotation.layout boxes or segments."""
        annotation = self.annotation
        if annotation.layout == "segments":
            kind = f"{annotation.segments.finder}-segments-{annotation.segments.num_segments}"
            return self._annotation_folder(kind, *self._encoder, annotation.features, annotation.segments)
        kind = f"{annotation.boxes.finder}-boxes-{annotation.boxes.objects}"
        return self._annotation_folder(kind, *self._encoder, annotation.features, annotation.boxes)

    @property
    def _encoder(self) -> tuple[Any, ...]:
        annotation = self.annotation
        return annotation.encoder, annotation.weights, annotation.self_supervision

    def _annotation_folder(self, kind: str, *decisive: Any) -> Path:
        digest = fingerprint(kind, [to_plain(value) for value in decisive], self.seed)
        return self.data.folder / "annotations" / f"{kind}-{digest[:8]}"


def to_plain(config: Any) -> Any:
    """A dataclass as YAML and JSON can hold it: paths become text, tuples lists."""
    if dataclasses.is_dataclass(config):
        return {entry.name: to_plain(getattr(config, entry.name)) for entry in dataclasses.fields(config)}
    if isinstance(config, tuple):
        return [to_plain(value) for value in config]
    return str(config) if isinstance(config, Path) else config


def save_config(config: Config, path: Path) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(yaml.safe_dump(to_plain(config), sort_keys=False), encoding="utf-8")


def load_config(path: Path) -> Config:
    """Reads a config.yaml. ConfigError names a missing file, an unknown field with its nearest names, a wrong type."""
    require(path.is_file(), f"{path} does not exist: give the config.yaml of a run folder")
    try:
        plain = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    _refuse_unknown_fields(plain, Config, str(path), prefix="")
    try:
        return pydantic.TypeAdapter(Config).validate_python(plain)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "value_error":  # one of ours, which says everything
            raise ConfigError(f"{path}: {first['ctx']['error']}") from error
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ConfigError(f"{path}: {where}: {first['msg']} (found {first['input']!r})") from error


def _refuse_unknown_fields(plain: Any, schema: type, path: str, prefix: str) -> None:
    require(isinstance(plain, dict), f"{path}: {prefix or 'the file'} must hold fields, found {plain!r}")
    types, names = get_type_hints(schema), [entry.name for entry in dataclasses.fields(schema)]
    for name, value in plain.items():
        if name not in names:
            nearest = difflib.get_close_matches(str(name), names, n=3, cutoff=0.4) or names
            raise ConfigError(f"{path}: unknown field {prefix}{name}; nearest: {', '.join(nearest)}")
        if dataclasses.is_dataclass(types[name]):
            _refuse_unknown_fields(value, types[name], path, prefix=f"{prefix}{name}.")
