from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from engine.config import Config, load_config, save_config, to_plain
from engine.config_error import ConfigError
from engine.console import parse
from engine.recipes import RECIPES, quickstart


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_survives_its_file(name: str, tmp_path: Path) -> None:
    config = RECIPES[name]()
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config


def edited(config: Config, path: Path, **changes: object) -> Path:
    plain = to_plain(config)
    for name, value in changes.items():
        section, _, field = name.partition("__")
        if field:
            plain[section][field] = value
        else:
            plain[section] = value
    path.write_text(yaml.safe_dump(plain), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training__learning_rat": 1.0}, r"unknown field training\.learning_rat; nearest: learning_rate"),
        ({"trainin": {}}, r"unknown field trainin; nearest: training"),
        ({"training__batch_size": "many"}, r"training\.batch_size.*'many'"),
        ({"training__batch_size": 0}, r"config\.yaml: training\.batch_size is 0: give at least 1"),
        ({"training__cooldown_images": -1}, r"training\.cooldown_images is -1"),
        ({"data__image_size": 31}, r"data\.image_size 31 does not fit model: .*multiple of 2"),
        ({"diffusion__prediction": "noise"}, r"diffusion\.prediction.*'noise'"),
        ({"model__attention_downsamples": [3]}, "attention_downsamples"),
        ({"training": 3}, "training"),
    ],
)
def test_a_wrong_file_is_refused_by_name(
    config: Config, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(edited(config, tmp_path / "config.yaml", **changes))


def test_a_file_that_is_not_there_or_not_yaml(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load_config(tmp_path / "config.yaml")
    (tmp_path / "config.yaml").write_text("a: [", encoding="utf-8")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(tmp_path / "config.yaml")


def test_network_follows_data_and_annotation(config: Config) -> None:
    assert config.network.image_size == config.data.image_size == 16
    assert config.network.num_clusters == 3
    unconditional = dataclasses.replace(config, annotation=dataclasses.replace(config.annotation, num_clusters=0))
    assert unconditional.network.num_clusters is None


def test_samples_come_from_an_average_that_is_tracked(config: Config) -> None:
    assert config.ema_decay == 0.9
    with pytest.raises(ConfigError, match=r"0\.7 is not tracked"):
        dataclasses.replace(config, sampling=dataclasses.replace(config.sampling, ema_decay=0.7))


@given(st.integers(1, 10**6), st.integers(0, 100))
def test_profiled_steps_are_first_and_last(first: int, more: int) -> None:
    training = dataclasses.replace(quickstart().training, profile=f"{first}:{first + more}")
    steps = training.profiled_steps
    assert steps is not None and (steps[0], steps[-1]) == (first, first + more)
    assert dataclasses.replace(training, profile=None).profiled_steps is None


@given(st.text(st.sampled_from("0123456789:- .x٣"), max_size=6))
def test_what_is_no_pair_of_steps_is_refused_by_name(text: str) -> None:
    try:
        steps = dataclasses.replace(quickstart().training, profile=text).profiled_steps
    except ConfigError as error:
        assert f"training.profile is {text!r}" in str(error)
    else:
        assert steps is not None and 1 <= steps[0] <= steps[-1] and text.isascii()


def test_profile_has_a_short_name() -> None:
    assert parse("train", ["--profile", "3:4"]).training.profiled_steps == range(3, 5)
