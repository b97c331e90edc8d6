"""Two processes on a CPU: the stages of ZeRO train alike; a killed run goes on bit for bit, and on others."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from engine import annotate, checkpoint, prepare
from engine.config import Config, save_config
from sgdm.files import read_json

SCRIPT = Path(__file__).with_name("scenarios.py")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(torch.cuda.device_count() == 1, reason="two processes need two GPUs, or none"),
]

OFFLOADED = {"zero_stage": 3, "offload_optimizer": "cpu", "offload_parameters": "cpu"}


@pytest.fixture
def prepared(config: Config) -> Config:
    """5 epochs of 6 batches of 16 images, and a network that learns something in them."""
    training = dataclasses.replace(
        config.training, images=480, learning_rate=3e-3, precision="fp32", accumulation=1, checkpoint_images=160
    )
    config = dataclasses.replace(config, training=training)
    prepare.run(config)
    annotate.run(config)
    return config


def start(config: Config, processes: int, scenarios: dict[str, dict[str, Any]]) -> subprocess.Popen[str]:
    path = config.run.with_suffix(".yaml")
    save_config(config, path)
    launcher = Path(sys.executable).with_name("deepspeed")
    command = [launcher, "--num_gpus", str(processes), "--master_port", str(random.randint(20_000, 30_000))]
    return subprocess.Popen(
        [*command, SCRIPT, path, json.dumps(scenarios)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
    )


def run(config: Config, processes: int, scenarios: dict[str, dict[str, Any]]) -> str:
    process = start(config, processes, scenarios)
    shown, _ = process.communicate()
    assert process.returncode == 0, shown
    return shown


def kill(process: subprocess.Popen[str]) -> None:
    """-9, to the launcher and to all that it started."""
    for member in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
        os.kill(member.pid, signal.SIGKILL)
    process.communicate()


def losses(config: Config, name: str) -> list[float]:
    lines = (config.run.with_name(name) / "log.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def digests(config: Config, name: str) -> dict[str, str]:
    """SHA-256 of weights, moments and averages at the end."""
    last = checkpoint.newest(config.run.with_name(name))
    assert last is not None
    files = read_json(last / "state.json")["files"]
    return {name: digest for name, digest in files.items() if name.endswith("safetensors")}


def test_every_stage_has_the_same_loss_curve(prepared: Config) -> None:
    training = dataclasses.replace(prepared.training, images=800, learning_rate=1e-3)  # 50 steps
    config = dataclasses.replace(prepared, training=training)
    ways: dict[str, dict[str, Any]] = {f"stage-{stage}": {"zero_stage": stage} for stage in range(4)}
    ways |= {
        "offloaded-optimizer": {"zero_stage": 1, "offload_optimizer": "cpu", "accumulation": 4},
        "offloaded": {**OFFLOADED, "activation_checkpointing": True},
    }
    run(config, 2, ways)
    expected = losses(config, "stage-0")
    assert len(expected) == 50 and expected[-1] < 0.9 * expected[0]
    for name in ways:
        np.testing.assert_allclose(losses(config, name), expected, rtol=1e-5, err_msg=name)


def test_clipping_is_the_same_on_the_device_and_by_deepspeed(prepared: Config) -> None:
    run(prepared, 2, {str(stage): {"zero_stage": stage, "gradient_clip": 0.3} for stage in (0, 2, 3)})
    for stage in ("2", "3"):
        np.testing.assert_allclose(losses(prepared, stage), losses(prepared, "0"), rtol=1e-5)


def test_a_killed_run_ends_bit_for_bit_as_if_it_were_not(prepared: Config) -> None:
    """Killed somewhere after the first checkpoint, in the middle of an epoch, with two backward passes a step."""
    fields = {"accumulation": 2, "gradient_clip": 1.0, "images": 960}
    whole = {f"whole-{stage}": {"zero_stage": stage, **fields} for stage in range(4)}
    run(prepared, 2, whole)
    for stage in range(4):
        name = f"killed-{stage}"
        process = start(prepared, 2, {name: {"zero_stage": stage, **fields}})
        folder = prepared.run.with_name(name)
        while checkpoint.newest(folder) is None:
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.01)
        time.sleep(random.random() / 2)
        kill(process)
        last = checkpoint.newest(folder)
        assert last is not None and checkpoint.images_of(last) < 960
    run(prepared, 2, {f"killed-{stage}": {"zero_stage": stage, **fields} for stage in range(4)})
    for stage in range(4):
        assert losses(prepared, f"killed-{stage}") == losses(prepared, f"whole-{stage}"), stage
        assert digests(prepared, f"killed-{stage}") == digests(prepared, f"whole-{stage}"), stage


def test_another_number_of_processes_or_stage_goes_on(prepared: Config) -> None:
    """From 2 processes to 1 and to 4, from each stage to another, offloaded or not."""
    half = {"images": 240}
    begun = {
        "to-1": {"zero_stage": 2},
        "to-4": {"zero_stage": 1},
        "2-to-3": {"zero_stage": 2},
        "3-to-0": {"zero_stage": 3},
        "0-to-offloaded": {"zero_stage": 0},
        "offloaded-to-1": OFFLOADED,
    }
    run(prepared, 2, {"whole": {"zero_stage": 0}, **{name: {**fields, **half} for name, fields in begun.items()}})
    run(prepared, 1, {"to-1": {"zero_stage": 0}})
    run(prepared, 4, {"to-4": {"zero_stage": 3}})
    run(
        prepared,
        2,
        {
            "2-to-3": {"zero_stage": 3},
            "3-to-0": {"zero_stage": 0},
            "0-to-offloaded": OFFLOADED,
            "offloaded-to-1": {"zero_stage": 1},
        },
    )
    for name in begun:
        found = losses(prepared, name)
        assert len(found) == 30
        np.testing.assert_allclose(found, losses(prepared, "whole"), rtol=1e-4, err_msg=name)
