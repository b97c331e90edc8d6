from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from engine.config import Config, TrainingConfig
from engine.config_error import ConfigError
from engine.distributed import Ranks
from engine.zero import check_stage, choose_stage, deepspeed_config, guards_itself, state_bytes

GIGABYTE = 10**9


@pytest.fixture
def training(config: Config) -> TrainingConfig:
    return dataclasses.replace(config.training, ema_decays=(0.999,))


def test_state_of_one_process_is_the_same_under_stage_0_and_shrinks_with_processes() -> None:
    """Weights, gradients, two moments and an average: 20 bytes a parameter."""
    assert state_bytes(0, 1_000, 1, 1) == 20_000
    sizes = [state_bytes(stage, 10**10, 1, 64) for stage in range(4)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[3] < sizes[0] / 20


@pytest.mark.parametrize(
    ("parameters", "memory", "processes", "stage"),
    [
        (75 * 10**6, 80 * GIGABYTE, 8, 0),
        (3 * 10**9, 80 * GIGABYTE, 8, 1),
        (5 * 10**9, 80 * GIGABYTE, 8, 2),
        (8 * 10**9, 80 * GIGABYTE, 8, 3),
        (100 * 10**9, 80 * GIGABYTE, 8, 3),
        (8 * 10**9, 80 * GIGABYTE, 1, 0),
    ],
)
def test_the_first_stage_that_fits_is_chosen(
    training: TrainingConfig, parameters: int, memory: int, processes: int, stage: int
) -> None:
    chosen, reason = choose_stage(training, parameters, processes, memory)
    assert chosen == stage
    assert "GB of state a process" in reason


def test_offloading_needs_a_stage(training: TrainingConfig) -> None:
    for fields, least in (({"offload_optimizer": "cpu"}, 1), ({"offload_parameters": "cpu"}, 3)):
        offloaded = dataclasses.replace(training, zero_stage=0, **fields)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=f"needs ZeRO stage {least} or more, this run has 0"):
            check_stage(offloaded, 0)
        automatic = dataclasses.replace(offloaded, zero_stage="auto")
        stage, _ = choose_stage(automatic, 1_000, 2, GIGABYTE)
        check_stage(automatic, stage)


@pytest.mark.parametrize(
    ("fields", "stage", "on_device"),
    [({}, 0, True), ({}, 2, True), ({}, 3, False), ({"offload_optimizer": "cpu"}, 1, False)],
)
def test_gradients_are_clipped_once(
    training: TrainingConfig, fields: dict[str, Any], stage: int, on_device: bool
) -> None:
    clipped = dataclasses.replace(training, gradient_clip=2.0, **fields)
    assert guards_itself(clipped, stage) is on_device
    made = deepspeed_config(clipped, stage, 4, 2, Ranks(0, 2, torch.device("cpu")))
    assert made["gradient_clipping"] == (0.0 if on_device else 2.0)
    assert made["train_batch_size"] == 16
