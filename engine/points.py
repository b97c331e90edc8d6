"""Points of a sweep: how a set of samples is drawn."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.axes import Interval
from engine.config import Config
from engine.sampling_config import EvaluationConfig, Sampler, SamplingConfig
from sgdm.data.sources import Split


@dataclass(frozen=True)
class Point:
    guidance_scale: float
    steps: int
    sampler: Sampler
    ema: float
    """A decay that the training has tracked, or a length."""
    eta: float
    interval: Interval
    seed: int

    @property
    def label(self) -> str:
        """All but the seed."""
        low, high = self.interval or (None, None)
        return label_of({**dataclasses.asdict(self), "interval_low": low, "interval_high": high})


def label_of(row: Mapping[str, Any]) -> str:
    """A point in words, from a row of the sweep's table."""
    text = f"w {row['guidance_scale']:g}, {row['steps']} steps of {row['sampler']}, ema {row['ema']:g}"
    text += f", eta {row['eta']:g}" if row["eta"] else ""
    low, high = row["interval_low"], row["interval_high"]
    return text + ("" if low is None else f", guided in {low:g}..{high:g}")


def axes(config: Config) -> dict[str, tuple[Any, ...]]:
    """The values of every field of a point but its seed: those of the sweep, or what sampling says."""
    sampling, swept = config.sampling, config.sweep.values
    return {
        "guidance_scale": swept.get("guidance", sampling.guidance_scales if config.guided else (0.0,)),
        "steps": swept.get("steps", (sampling.steps,)),
        "sampler": swept.get("sampler", (sampling.sampler,)),
        "ema": swept.get("ema", (config.ema_decay if sampling.ema_length is None else sampling.ema_length,)),
        "eta": swept.get("eta", (sampling.eta,)),
        "interval": swept.get("interval", (sampling.guidance_interval,)),
    }


def seeds(config: Config) -> range:
    return range(config.seed, config.seed + config.sweep.seeds)


def points(config: Config) -> list[Point]:
    """All combinations, each with all seeds. Only DDIM has an eta: other samplers are there once, without it."""
    values = axes(config)
    found = [point_at(config, dict(zip(values, ones, strict=True))) for ones in itertools.product(*values.values())]
    return [dataclasses.replace(point, seed=seed) for point in dict.fromkeys(found) for seed in seeds(config)]


def point_at(config: Config, values: Mapping[str, Any]) -> Point:
    """The point of these values of all axes, with the first seed."""
    point = Point(**values, seed=config.seed)
    return point if point.sampler == "ddim" else dataclasses.replace(point, eta=0.0)


PAPER = {
    "sampling.images": 10_000,
    "sampling.sampler": "ddim",
    "sampling.steps": 250,
    "sampling.eta": 0.0,
    "sampling.guidance_interval": None,
    "sampling.clusters": "frequency",
    "sampling.cluster": None,
    "evaluation.reference": "val",
    "evaluation.reference_images": None,
}
EDM = {
    "sampling.images": 50_000,
    "sampling.clusters": "frequency",
    "sampling.cluster": None,
    "evaluation.reference": "train",
    "evaluation.reference_images": None,
}
PROTOCOLS: dict[str, dict[str, Any]] = {"paper": PAPER, "edm": EDM, "custom": {}}
"""What each fixes. `paper`: 10,000 samples of DDIM in 250 steps, with clusters by frequency, against val, as Hu et al.
(2210.06462) report; `edm`: 50,000 samples against train, as Karras et al. (2206.00364) do."""


def protocol_of(config: Config, point: Point, reference: Split) -> str:
    """The first protocol that a point keeps to, compared with this split. It follows from what is done, so that no
    table can misname it."""
    sampling = dataclasses.replace(
        config.sampling,
        sampler=point.sampler,
        steps=point.steps,
        eta=point.eta,
        guidance_interval=point.interval,
    )
    evaluation = dataclasses.replace(config.evaluation, reference=reference)
    parts: dict[str, SamplingConfig | EvaluationConfig] = {"sampling": sampling, "evaluation": evaluation}
    for name, fixed in PROTOCOLS.items():
        if all(getattr(parts[path.split(".")[0]], path.split(".")[1]) == value for path, value in fixed.items()):
            return name
    raise AssertionError("custom fixes nothing")
