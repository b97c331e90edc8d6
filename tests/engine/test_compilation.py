"""What training.compile comes to, and that a run is compiled once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

from engine import annotate, prepare, sample, train
from engine.compilation import Choice, Compilation, choose, compile_report
from engine.config import Config
from engine.step import TrainingStep
from sgdm.data.guides import Drawn
from sgdm.diffusion.objective import make_objective
from sgdm.models.config import UNetConfig
from sgdm.models.unet import UNet

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> CompileCounterWithBackend:
    """torch.compile with its front end, autograd and all, but no code generation, which takes minutes; counted."""
    counter = CompileCounterWithBackend("aot_eager")
    compile_with_inductor = torch.compile

    def compile_without_inductor(function: Callable[..., Any], mode: str, **options: Any) -> Callable[..., Any]:
        return compile_with_inductor(function, backend=counter, **options)

    monkeypatch.setattr(torch, "compile", compile_without_inductor)
    torch._dynamo.reset()
    counters.clear()
    return counter


def test_automatic_choice_compiles_on_a_gpu_only() -> None:
    assert choose("auto", GPU) == Compilation("default")
    assert choose("auto", CPU) == Compilation("off")
    assert not choose("auto", CPU).compiles
    assert choose("max-autotune", CPU) == Compilation("max-autotune")


def test_cuda_graphs_fall_back_with_a_reason() -> None:
    assert choose("cuda-graphs", GPU) == Compilation("cuda-graphs")
    assert choose("cuda-graphs", CPU) == Compilation("default", "no CUDA graphs on cpu")
    assert choose("cuda-graphs", GPU, accumulation=2) == Compilation(
        "default", "no CUDA graphs with training.accumulation 2: give 1"
    )


def test_off_is_the_function_itself() -> None:
    def double(x: Tensor) -> Tensor:
        return 2 * x

    assert Compilation("off")(double) is double


def test_the_result_of_cuda_graphs_is_not_overwritten_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = torch.zeros(1)  # as a graph's output: the same memory at every replay

    def replay(x: Tensor) -> Tensor:
        return buffer.copy_(x)

    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    call = Compilation("cuda-graphs")(replay)
    first, second = call(torch.ones(1)), call(2 * torch.ones(1))
    assert (first.item(), second.item()) == (1, 2)


def arguments(B: int = 4) -> tuple[Any, ...]:
    return (
        torch.randint(0, 256, (B, 3, 8, 8), dtype=torch.uint8),
        Drawn(torch.randint(0, 5, (B,)), torch.randint(0, 2, (B, 1, 8, 8), dtype=torch.uint8)),
        torch.rand(B) < 0.1,
        torch.rand(B) < 0.5,
        torch.randn(B, 3, 8, 8),
        torch.rand(B),
    )


def test_training_evaluation_and_training_again_compile_each_once(counter: CompileCounterWithBackend) -> None:
    torch.manual_seed(0)
    config = UNetConfig(
        image_size=8,
        channels=8,
        channel_multipliers=(1, 2),
        residual_blocks=1,
        attention_downsamples=(2,),
        heads=2,
        num_clusters=5,
        mask_channels=1,
    )
    network = UNet(config)
    step = TrainingStep(network, make_objective("eps", "sqrt_linear", None), False, Compilation("default"), False)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)

    def train_steps() -> None:
        network.train()
        for rate in (1e-3, 1e-4, 1e-5):
            optimizer.param_groups[0]["lr"] = rate
            step(*arguments()).mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    train_steps()
    assert counter.frame_count == 1
    network.eval()
    with torch.no_grad():
        for _ in range(3):
            step(*arguments())
    assert counter.frame_count == 2
    train_steps()
    assert counter.frame_count == 2
    assert not counters["graph_break"]


def test_block_by_block_the_loss_and_its_gradient_are_the_same(counter: CompileCounterWithBackend) -> None:
    """As under ZeRO 3, and of a single image too."""
    config = UNetConfig(
        image_size=16,
        channels=8,
        channel_multipliers=(1, 2),
        residual_blocks=1,
        attention_downsamples=(2,),
        heads=2,
        num_clusters=3,
        dropout=0.0,
    )
    torch.manual_seed(0)
    network = UNet(config)
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    objective, gradients = make_objective("eps", "sqrt_linear", None), []
    image = torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    drawn, dropped = Drawn(torch.tensor([1]), None), torch.tensor([False])
    noise = torch.randn(1, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    for choice, by_block in (("off", False), ("default", True)):
        step = TrainingStep(network, objective, False, Compilation(choice), by_block)
        network.zero_grad()
        step(image, drawn, dropped, None, noise, torch.tensor([0.4])).mean().backward()
        gradients.append([parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None])
    assert counter.frame_count > 1 and not counters["graph_break"]
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-6)


def test_a_whole_run_compiles_three_graphs_and_equals_the_uncompiled_run(
    counter: CompileCounterWithBackend,
    make_config: Callable[[Path], Config],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    weights = []
    for choice in ("off", "default"):
        config = make_config(tmp_path / choice)
        config = dataclasses.replace(config, training=dataclasses.replace(config.training, compile=choice))
        for stage in (prepare, annotate, train, sample):
            stage.run(config)
        weights.append(UNet.from_pretrained(config.run / "checkpoints" / "64" / "ema-0.15"))
    assert counter.frame_count == 3  # the training step; the step of sample, unguided and guided by whatever scale
    assert not counters["graph_break"]
    assert "train: compiled 1 graph(s) in" in capsys.readouterr().out
    eager, compiled = (network.state_dict() for network in weights)
    for name, value in eager.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("choice", ["default", "max-autotune"])
def test_the_report_counts_time_and_cache(choice: Choice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    for attempt in ("first", "second"):
        torch._dynamo.reset()
        counters.clear()
        before = compile_report()
        function = Compilation(choice)(lambda x: (x.sin() + 2).sum())
        function(torch.randn(8, requires_grad=True)).backward()
        report = compile_report()
        assert report.graphs == 1 and report.seconds > before.seconds
        if attempt == "first":
            assert report.cache_misses > 0 and report.cache_hits == 0
            assert str(report).endswith("s, 0 of 2 pieces from the cache")
        else:
            assert report.cache_misses == 0 and report.cache_hits > 0
