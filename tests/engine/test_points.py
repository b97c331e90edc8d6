from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from engine.config import Config
from engine.config_error import ConfigError
from engine.console import parse
from engine.points import points, protocol_of
from engine.sampling_config import SweepConfig


def swept(config: Config, **axes: str | int) -> Config:
    return dataclasses.replace(config, sweep=SweepConfig(**axes))


def test_points_are_all_combinations_each_with_all_seeds(config: Config) -> None:
    found = points(swept(config, guidance="0,2", steps="3,5", sampler="ddim,heun", ema="0.9,0.05", seeds=3))
    assert len(found) == len(set(found)) == 2 * 2 * 2 * 2 * 3
    assert {point.seed for point in found} == {0, 1, 2}
    assert all(point.interval is None and point.eta == 0 for point in found)
    assert found[0].label == "w 0, 3 steps of ddim, ema 0.9"


def test_what_is_not_swept_is_what_sampling_says(config: Config) -> None:
    assert [(one.guidance_scale, one.sampler, one.steps, one.ema) for one in points(config)] == [
        (0.0, "dpmpp", 2, 0.9),
        (2.0, "dpmpp", 2, 0.9),
    ]


def test_only_ddim_has_an_eta(config: Config) -> None:
    found = points(swept(config, guidance="2", sampler="ddim,dpmpp", eta="0,0.5,1"))
    assert [(one.sampler, one.eta) for one in found] == [("ddim", 0.0), ("ddim", 0.5), ("ddim", 1.0), ("dpmpp", 0.0)]


def test_a_run_without_annotations_is_not_guided(config: Config) -> None:
    plain = dataclasses.replace(config, annotation=dataclasses.replace(config.annotation, num_clusters=0))
    assert [point.guidance_scale for point in points(plain)] == [0.0]
    with pytest.raises(ConfigError, match=r"trained without annotations .*give a sampling.weak_model"):
        swept(plain, guidance="0:4:1")
    by_weak = dataclasses.replace(plain, sampling=dataclasses.replace(plain.sampling, weak_model=Path("weak")))
    assert len(points(swept(by_weak, guidance="0:4:1"))) == 5


@pytest.mark.parametrize(
    ("arguments", "protocol"),
    [
        (["--protocol", "paper"], "paper"),
        (["--protocol=edm"], "edm"),
        (["--protocol", "custom"], "custom"),
        (["--protocol", "paper", "--num", "500"], "custom"),
        (["--protocol", "paper", "--sampling.clusters", "balanced"], "custom"),
        (["--protocol", "edm", "--sampling.sampler", "heun", "--sampling.steps", "18"], "edm"),
        (["--num", "50000", "--evaluation.reference", "train", "--evaluation.reference-images", "None"], "edm"),
    ],
)
def test_a_protocol_is_called_by_what_is_done(arguments: list[str], protocol: str) -> None:
    config = parse("evaluate", ["imagenet64", *arguments])
    assert {protocol_of(config, point, config.evaluation.reference) for point in points(config)} == {protocol}


def test_a_point_that_leaves_the_protocol_is_custom() -> None:
    config = parse("evaluate", ["imagenet64", "--protocol", "paper", "--sweep.steps", "50,250"])
    assert {point.steps: protocol_of(config, point, config.evaluation.reference) for point in points(config)} == {
        50: "custom",
        250: "paper",
    }


def test_protocols_of_other_names_are_refused() -> None:
    with pytest.raises(ConfigError, match="no protocol adm; there are paper, edm, custom"):
        parse("evaluate", ["imagenet64", "--protocol", "adm"])


def test_without_a_val_split_it_is_not_the_papers_protocol() -> None:
    config = parse("evaluate", ["imagenet64", "--protocol", "paper"])
    assert protocol_of(config, points(config)[0], "train") == "custom"
