from __future__ import annotations

import dataclasses

import numpy as np
import psutil
import pytest
import torch

from engine import distributed, memory, trainer
from engine.compilation import Compilation
from engine.config import Config
from engine.config_error import ConfigError
from engine.distributed import Ranks
from engine.memory import Activations, activation_bytes, fewest_micro_batches, find_accumulation, free_bytes, predict
from engine.step import TrainingStep
from engine.zero import state_bytes
from sgdm.data.guides import Drawn
from sgdm.diffusion.objective import make_objective
from sgdm.models.unet import UNet

CPU = torch.device("cpu")
ALONE = Ranks(0, 1, CPU)
PARAMETERS = 1_000_000


@pytest.fixture
def fp32(config: Config) -> Config:
    return with_training(config, precision="fp32")


def with_training(config: Config, **fields: object) -> Config:
    return dataclasses.replace(config, training=dataclasses.replace(config.training, **fields))  # type: ignore[arg-type]


def kept_for_backward(config: Config, batch: int) -> int:
    """Bytes that autograd saves in a step that is computed, weights left out."""
    network = UNet(config.network)
    network.keeps_activations = not config.training.activation_checkpointing
    step = TrainingStep(network, make_objective("eps"), False, Compilation("off"), by_block=False)
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    side = config.network.image_size
    image, flags = torch.zeros(batch, 3, side, side, dtype=torch.uint8), torch.zeros(batch, dtype=torch.bool)
    drawn = Drawn(torch.zeros(batch, dtype=torch.long), None)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step(image, drawn, flags, None, torch.zeros(image.shape), torch.zeros(batch))
    return sum(storage.nbytes() for key, storage in kept.items() if key not in weights)


def test_what_is_traced_is_what_a_computed_step_keeps(fp32: Config) -> None:
    kept = kept_for_backward(fp32, 32)
    # Beside it there are the operators' temporary results.
    assert kept < activation_bytes(fp32, 32, CPU) < 1.25 * kept


def test_checkpointing_and_bf16_hold_less(fp32: Config) -> None:
    whole = activation_bytes(fp32, 32, CPU)
    assert activation_bytes(with_training(fp32, activation_checkpointing=True), 32, CPU) < 0.8 * whole
    assert activation_bytes(with_training(fp32, precision="bf16"), 32, CPU) < 0.9 * whole


def test_a_gpu_has_a_group_norm_that_keeps_less(fp32: Config) -> None:
    of_gpu, plain = (memory.trace_for_gpu(with_training(fp32, group_norm=backend)) for backend in ("auto", "plain"))
    assert of_gpu.an_image < 0.8 * plain.an_image


def test_activations_lie_on_a_line(fp32: Config) -> None:
    assert memory.trace_activations(fp32, CPU)(200) == pytest.approx(activation_bytes(fp32, 200, CPU), rel=0.02)


@pytest.mark.parametrize(
    ("stage", "copies"),
    [
        (0, 1 + 2 + 1 + 1 + 1),  # weights, moments, an average, gradients and their all-reduce
        (1, 1 + (1 + 2 + 1) / 4 + 1 + 1),  # weights; masters, moments and average; gradients; a bucket that holds all
        (2, 1 + (1 + 2 + 1) / 4 + 2 + 1 / 4),
        (3, (2 + 1 + 2 + 1) / 4 + 1 + 1),  # a part of all; a bucket; the weights gathered
    ],
)
def test_state_of_each_stage(stage: int, copies: float) -> None:
    assert state_bytes(stage, PARAMETERS, averages=1, world_size=4) == pytest.approx(4 * PARAMETERS * copies)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_memory_grows_with_the_micro_batch_and_is_no_less_than_the_state(config: Config, stage: int) -> None:
    state = state_bytes(stage, PARAMETERS, len(config.training.ema_decays), 4)
    totals = [
        predict(config.training, stage, PARAMETERS, 4, activations, 1, on_gpu=True).total
        for activations in np.linspace(0, 100e6, 50)
    ]
    assert totals[0] == pytest.approx(state)
    assert totals == sorted(totals) and totals[-1] > totals[0] + 50e6


def test_offloading_frees_a_gpu_and_not_a_cpu(config: Config) -> None:
    offloaded = with_training(config, offload_optimizer="cpu").training
    of_gpu, of_cpu = (predict(offloaded, 2, PARAMETERS, 4, 0.0, 1, on_gpu) for on_gpu in (True, False))
    assert of_cpu.total - of_gpu.total == pytest.approx((3 + len(config.training.ema_decays)) * PARAMETERS)


def test_as_few_micro_batches_as_fit(config: Config) -> None:
    training, activations = config.training, Activations(0.0, 10e6)  # 160 MB for the batch of 16

    def found(memory_bytes: float) -> int | None:
        return fewest_micro_batches(training, 0, PARAMETERS, 1, activations, memory_bytes, on_gpu=False)

    state = predict(training, 0, PARAMETERS, 1, 0.0, 2, on_gpu=False).total
    for size, fewest in ((16, 1), (8, 2), (7, 4), (1, 16)):
        assert found((state + size * 10e6) / memory.SHARE + 1) == fewest
    assert found(state / memory.SHARE) is None


@pytest.fixture
def ten_megabytes_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "activation_bytes", lambda config, micro_batch, device: 10e6 * micro_batch)


def test_accumulation_follows_the_memory_that_is_free(ten_megabytes_an_image: None, config: Config) -> None:
    needed = predict(config.training, 0, 10_000, 1, 160e6, 1, on_gpu=False).total
    assert find_accumulation(config, 10_000, 0, ALONE, needed / memory.SHARE + 1) == 1
    assert find_accumulation(config, 10_000, 0, ALONE, needed / memory.SHARE - 1) == 2


def test_too_little_for_one_image_names_figures_and_ways_out(ten_megabytes_an_image: None, config: Config) -> None:
    with pytest.raises(ConfigError, match="not even one image") as error:
        find_accumulation(config, 10_000, 0, ALONE, 10e6)
    for said in ("0.01 GB of activations", "activation_checkpointing", "zero_stage", "offload_optimizer"):
        assert said in str(error.value)


def test_a_run_is_given_what_fits(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = distributed.initialize()
    assert 0 < free_bytes(ranks) < psutil.virtual_memory().total
    automatic = with_training(config, accumulation=None, precision="fp32")
    half = activation_bytes(automatic, 8, CPU)
    monkeypatch.setattr(trainer, "free_bytes", lambda ranks: 1.5 * half / memory.SHARE)
    run = trainer.Trainer(automatic, None, None, {}, ranks)  # type: ignore[arg-type]
    assert (run.accumulation, run.micro_batch) == (2, 8)
