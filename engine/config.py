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

from engine.annotation_config import AnnotationConfig
from engine.compilation import Choice
from engine.config_error import ConfigError, require
from engine.sampling_config import EvaluationConfig, SamplingConfig, SweepConfig
from kernels.attention import Backend as AttentionBackend
from kernels.group_norm import Backend as GroupNormBackend
from sgdm.annotate.names import CONTROLS
from sgdm.averaging import LONGEST
from sgdm.files import atomic_write, fingerprint
from sgdm.models.config import UNetConfig
from sgdm.models.layers import Backends


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
    sweep: SweepConfig = field(default_factory=SweepConfig)

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
        K = self.annotation.num_clusters
        for name in ("cluster", "interpolate"):
            value = getattr(self.sampling, name)
            ids = value if isinstance(value, tuple) else () if value is None else (value,)
            require(
                all(0 <= number < K for number in ids),
                f"sampling.{name} is {value}, but the clusters are 0 to {K - 1}"
                if K
                else f"sampling.{name} is {value}, but this run has no clusters (annotation.num_clusters is 0)",
            )
        asked = self.sampling.cluster is not None or self.sampling.clusters != "frequency"
        require(
            not asked or self.annotation.layout == "none",
            f"sampling.clusters is {self.sampling.clusters} and sampling.cluster {self.sampling.cluster}, but with "
            f"annotation.layout {self.annotation.layout} the cluster of a sample goes with its layout: leave them out",
        )
        require(
            self.sweep.metric != "backbone_frechet_distance" or self.evaluation.backbone is not None,
            f"sweep.metric is {self.sweep.metric}: name the evaluation.backbone too",
        )
        scales = self.sweep.values.get("guidance", ())
        require(
            self.guided or all(scale in (0, 1) for scale in scales),
            f"sweep.guidance is {self.sweep.guidance}, but this run was trained without annotations "
            "(annotation.num_clusters is 0, annotation.layout none): leave it out, or give a sampling.weak_model to "
            "guide by",
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
    def guided(self) -> bool:
        """Whether a guidance scale has anything to act on."""
        return self.network.has_condition or self.sampling.weak_model is not None

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
