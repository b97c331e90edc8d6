from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

from engine import console
from engine.config import Config, load_config, save_config
from engine.config_error import ConfigError
from engine.recipes import RECIPES, quickstart
from engine.telemetry import stage

ENGINE = Path(console.__file__).parent


def test_without_arguments_the_quickstart() -> None:
    assert console.parse("train", []) == quickstart()


def test_any_field_is_overridden() -> None:
    arguments = [
        "imagenet64",
        "--training.learning-rate",
        "0.01",
        "--sampling.guidance-scales",
        "1.5",
        "2.5",
        "--data.source",
        "my/images",
        "--strict",
        "--local_rank=3",
    ]
    config = console.parse("train", arguments)
    assert config.training.learning_rate == 0.01
    assert config.sampling.guidance_scales == (1.5, 2.5)
    assert config.data.strict and config.data.source == "my/images"
    assert config.annotation == RECIPES["imagenet64"]().annotation


def test_the_config_of_a_run_runs_it_again(config: Config, tmp_path: Path) -> None:
    save_config(config, tmp_path / "config.yaml")
    for arguments in (["--config", str(tmp_path / "config.yaml")], [f"--config={tmp_path / 'config.yaml'}"]):
        assert console.parse("train", arguments) == config
    changed = console.parse("train", ["--config", str(tmp_path / "config.yaml"), "--seed", "5"])
    assert changed == dataclasses.replace(config, seed=5)


def test_refusals_name_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="no recipe quickstat; nearest: quickstart"):
        console.parse("train", ["quickstat"])
    with pytest.raises(SystemExit):
        console.parse("train", ["--training.learning-rat", "1"])
    assert "--training.learning-rate" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"--model\.num-clusters follows --annotation\.num-clusters"):
        console.parse("train", ["--model.num_clusters=5"])


def test_the_resolved_configuration_is_stored_when_a_stage_begins(config: Config, tmp_path: Path) -> None:
    save_config(config, tmp_path / "given.yaml")

    def run(resolved: Config) -> None:
        with stage(resolved, "train"):
            assert load_config(config.run / "config.yaml") == resolved

    console.run_program("train", run, ["--config", str(tmp_path / "given.yaml"), "--seed", "7"])
    assert load_config(config.run / "config.yaml") == dataclasses.replace(config, seed=7)


def test_an_error_of_the_user_is_one_clear_line(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(_: Config) -> None:
        raise ValueError("the thing, the value, the way out")

    with pytest.raises(SystemExit) as stop:
        console.run_program("train", refuse, ["--run", str(config.run)])
    assert stop.value.code == 2
    assert "train: the thing, the value, the way out" in capsys.readouterr().err


@pytest.mark.parametrize("program", ["prepare", "annotate", "train", "sample", "evaluate"])
def test_every_program_runs_alone_and_lists_every_option(program: str) -> None:
    """Every field of every section, with its meaning (the docstring below the field)."""
    shown = subprocess.run(
        [sys.executable, str(ENGINE / f"{program}.py"), "--help"], capture_output=True, text=True, check=True
    ).stdout
    text = " ".join(shown.replace("│", " ").split())
    for section in dataclasses.fields(Config):
        if dataclasses.is_dataclass(quickstart().__getattribute__(section.name)):
            for field in dataclasses.fields(getattr(quickstart(), section.name)):
                assert f"--{section.name}.{field.name.replace('_', '-')}" in text
    batch_size = quickstart().training.batch_size
    assert re.search(rf"--training\.batch-size INT Global batch: [^-]+\(default: {batch_size}\)", text)


def test_sgdm_command() -> None:
    def sgdm(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "engine.console", *arguments], capture_output=True, text=True, check=False
        )

    assert "evaluate" in sgdm().stdout
    wrong = sgdm("trian")
    assert wrong.returncode == 2 and "nearest: train" in wrong.stderr
    info = sgdm("info")
    assert info.returncode == 0
    assert "torch" in info.stdout and "attention: flash" in info.stdout and "kernel: group_norm" in info.stdout
