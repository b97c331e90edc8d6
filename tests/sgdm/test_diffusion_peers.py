"""Samplers against the schedulers of diffusers: same network, same steps, same noise, step by step to the end.

Their tables are float32. Once compared they are replaced by ours, so that what differs is the method alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from sgdm.conditions import Condition
from sgdm.diffusion.objective import VariancePreserving, make_objective
from sgdm.diffusion.sampling import Sampling
from sgdm.diffusion.schedule import SCHEDULES, karras_grid, make_alpha_bar

diffusers = pytest.importorskip("diffusers")

SHAPE = (2, 3, 4, 4)
OBJECTIVES = {name: make_objective("eps", name) for name in SCHEDULES}
BETA_SCHEDULES = {"sqrt_linear": "scaled_linear", "linear": "linear", "cosine": "squaredcos_cap_v2"}


def network(x: Tensor, time: Tensor, condition: Condition | None) -> Tensor:
    weight = torch.linspace(-0.3, 0.3, 81, dtype=torch.float64).view(3, 3, 3, 3)
    phase = time.double().view(-1, 1, 1, 1) / 300
    return 0.5 * x + torch.tanh(torch.nn.functional.conv2d(x, weight, padding=1) + torch.sin(phase))


Step = Callable[[Any, Tensor, Any, Tensor, "Stream"], Tensor]


def predict(x: Tensor, time: Tensor | float) -> Tensor:
    return network(x, torch.as_tensor(time).expand(len(x)), None)


class Stream:
    """The same normal numbers for both sides, in the order in which they are drawn."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(4)

    def draw(self) -> Tensor:
        return torch.randn(SHAPE, dtype=torch.float64, generator=self.generator)


def scheduler(kind: str, schedule: str, prediction: str, steps: int, **options: Any) -> Any:
    prediction_type = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}[prediction]
    made = getattr(diffusers, kind)(
        num_train_timesteps=1000,
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule=BETA_SCHEDULES[schedule],
        prediction_type=prediction_type,
        **{"timestep_spacing": "trailing", **options},
    )
    if kind in ("DDPMScheduler", "DDIMScheduler"):
        made.alphas_cumprod = make_alpha_bar(schedule)
        made.final_alpha_cumprod = made.one = torch.ones((), dtype=torch.float64)
    made.set_timesteps(steps)
    return made


def replace_sigmas(made: Any, sigmas: list[float]) -> None:
    expected = torch.tensor(sigmas, dtype=torch.float64)
    torch.testing.assert_close(made.sigmas.double(), expected, rtol=1e-3, atol=0)  # theirs: float32 of alpha_bar 2e-9
    made.sigmas = expected


def ours(schedule: str, prediction: str, clip: bool = False, **options: Any) -> Tensor:
    objective = VariancePreserving(make_alpha_bar(schedule), prediction)
    return Sampling(network, objective, clip=clip)(None, Stream(), **options)


def theirs(made: Any, scale: float, step: Step) -> Tensor:
    stream = Stream()
    x = scale * stream.draw()
    for time in made.timesteps:
        x = step(made, predict(made.scale_model_input(x, time), time), time, x, stream)
    return x


def step(made: Any, output: Tensor, time: Any, x: Tensor, stream: Stream) -> Tensor:
    result: Tensor = made.step(output, time, x).prev_sample
    return result


def assert_agrees(result: Tensor, expected: Tensor) -> None:
    """To 1e-5 of the largest value: with predictions of an untrained network some samples are not near [-1, 1]."""
    difference = (result - expected).abs().max().item() / max(1, expected.abs().max().item())
    print(f"relative difference {difference:.1e}")
    assert difference < 1e-5


@pytest.fixture(params=sorted(SCHEDULES))
def schedule(request: pytest.FixtureRequest) -> Iterator[str]:
    yield request.param


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
@pytest.mark.parametrize("steps", [20, 50])
def test_ddpm(schedule: str, prediction: str, steps: int) -> None:
    made = scheduler("DDPMScheduler", schedule, prediction, steps, clip_sample=False, variance_type="fixed_small")

    def step(made: Any, output: Tensor, time: Any, x: Tensor, stream: Stream) -> Tensor:
        result: Tensor = made.step(output, time, x, generator=stream.generator).prev_sample
        return result

    expected = theirs(made, 1, step)
    result = ours(schedule, prediction, sampler="ddpm", steps=steps)
    assert_agrees(result, expected)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
@pytest.mark.parametrize("eta", [0.0, 0.7])
@pytest.mark.parametrize("clip", [False, True])
def test_ddim(schedule: str, prediction: str, eta: float, clip: bool) -> None:
    made = scheduler("DDIMScheduler", schedule, prediction, 50, clip_sample=clip)

    def step(made: Any, output: Tensor, time: Any, x: Tensor, stream: Stream) -> Tensor:
        options: dict[str, Any] = {"use_clipped_model_output": clip, "eta": eta}
        if eta > 0:
            options["variance_noise"] = stream.draw()
        result: Tensor = made.step(output, time, x, **options).prev_sample
        return result

    expected = theirs(made, 1, step)
    result = ours(schedule, prediction, clip, sampler="ddim", steps=50, eta=eta)
    assert_agrees(result, expected)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
@pytest.mark.parametrize("steps", [10, 25])
def test_dpm_solver(schedule: str, prediction: str, steps: int) -> None:
    made = scheduler("DPMSolverMultistepScheduler", schedule, prediction, steps, solver_order=2, solver_type="midpoint")
    replace_sigmas(made, OBJECTIVES[schedule].sigma_grid(steps))
    expected = theirs(made, 1, step)
    result = ours(schedule, prediction, sampler="dpmpp", steps=steps)
    assert_agrees(result, expected)


def test_euler(schedule: str) -> None:
    made = scheduler("EulerDiscreteScheduler", schedule, "eps", 50)
    replace_sigmas(made, OBJECTIVES[schedule].sigma_grid(50))
    expected = theirs(made, math.hypot(1, made.sigmas[0]), step)
    result = ours(schedule, "eps", sampler="ddim", steps=50)
    assert_agrees(result, expected)


def test_heun(schedule: str) -> None:
    made = scheduler("HeunDiscreteScheduler", schedule, "eps", 25, timestep_spacing="linspace", use_karras_sigmas=True)
    sigmas = karras_grid(OBJECTIVES[schedule].sigma_min, OBJECTIVES[schedule].sigma_max, 25)
    replace_sigmas(made, sigmas[:1] + [sigma for sigma in sigmas[1:-1] for _ in range(2)] + sigmas[-1:])
    expected = theirs(made, math.hypot(1, made.sigmas[0]), step)
    result = ours(schedule, "eps", sampler="heun", steps=25)
    assert_agrees(result, expected)
