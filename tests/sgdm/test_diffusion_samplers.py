"""Samplers on Gaussian data, where the denoiser is known and every sampler is an affine map of its noise.

So the distribution of samples needs no samples: the images of the zero noise and of one unit impulse for each number
drawn give the mean and the covariance exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from sgdm.conditions import Condition
from sgdm.diffusion.denoiser import estimate
from sgdm.diffusion.guidance import UNGUIDED, Guidance
from sgdm.diffusion.names import UnknownNameError
from sgdm.diffusion.noise import NoiseSource
from sgdm.diffusion.objective import Objective, VariancePreserving, make_objective
from sgdm.diffusion.samplers import SAMPLERS, Row, make_rows
from sgdm.diffusion.sampling import Sampling

MEAN = torch.tensor([0.3, -0.5, 0.1], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.30, 0.10, 0.0], [0.10, 0.20, -0.05], [0.0, -0.05, 0.10]], dtype=torch.float64)
OBJECTIVES = {name: make_objective(name) for name in ("eps", "x0", "v", "edm")}


class GaussianNetwork:
    """The best network for images [3, 1, 1] of distribution N(MEAN, COVARIANCE): it predicts the expected target."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective

    def __call__(self, x: Tensor, time: Tensor, condition: Condition | None) -> Tensor:
        step = time[0].item()
        if isinstance(self.objective, VariancePreserving):
            sigma = torch.tensor(self.objective.steps.sigma(step), dtype=torch.float64)
        else:
            sigma = torch.tensor(math.exp(step / 250), dtype=torch.float64)
        x = x.flatten(1) / self.objective.input_scale(sigma)
        gain = COVARIANCE @ torch.linalg.inv(COVARIANCE + sigma.square() * torch.eye(3))
        image = MEAN + (x - MEAN) @ gain.T
        a, b = self.objective.target(sigma)
        return (a * image + b * (x - image) / sigma).view(-1, 3, 1, 1)


class Impulses:
    """Draws zeros for image 0 and, for each draw and each of its 3 numbers, a one for a single image."""

    def __init__(self, draws: int) -> None:
        self.batch, self.draws = 1 + 3 * draws, 0

    def draw(self) -> Tensor:
        noise = torch.zeros(self.batch, 3, 1, 1, dtype=torch.float64)
        for i in range(3):
            noise[1 + 3 * self.draws + i, i] = 1
        self.draws += 1
        return noise


def gaussian(prediction: str) -> Sampling:
    objective = OBJECTIVES[prediction]
    return Sampling(GaussianNetwork(objective), objective, clip=False)


def moments(sample: Sampling, sampler: str, steps: int, eta: float = 0.0) -> tuple[Tensor, Tensor]:
    """Exact mean [3] and covariance [3, 3] of the samples."""
    draws = steps if sampler == "ddpm" or eta > 0 else 1
    noise = Impulses(draws)
    images = sample(None, noise, sampler=sampler, steps=steps, eta=eta).flatten(1)
    assert noise.draws == draws
    response = images[1:] - images[0]
    return images[0], response.T @ response


def exact_flow(x: Tensor, sigma: float) -> Tensor:
    """Where the probability flow takes x [B, 3] from sigma to 0: it rescales the principal axes (2206.00364, eq. 1)."""
    values, axes = torch.linalg.eigh(COVARIANCE)
    return MEAN + ((x - MEAN) @ axes * (values / (values + sigma**2)).sqrt()) @ axes.T


def published_ddim(x: Tensor, sigmas: list[float], eta: float, draw: Callable[[], Tensor]) -> Tensor:
    """Song et al. (2010.02502), equations 12 and 16, in their own (VP) coordinates."""
    alphas = [1 / (1 + sigma**2) for sigma in sigmas]
    x = x * math.sqrt(alphas[0])
    for (sigma, _), (alpha, alpha_next) in zip(pairwise(sigmas), pairwise(alphas), strict=True):
        image = denoise(x / math.sqrt(alpha), sigma)
        eps = (x - math.sqrt(alpha) * image) / math.sqrt(1 - alpha)
        deviation = eta * math.sqrt((1 - alpha_next) / (1 - alpha)) * math.sqrt(1 - alpha / alpha_next)
        x = math.sqrt(alpha_next) * image + math.sqrt(max(0, 1 - alpha_next - deviation**2)) * eps
        if deviation > 0:
            x = x + deviation * draw()
    return x


def published_heun(x: Tensor, sigmas: list[float], eta: float, draw: Callable[[], Tensor]) -> Tensor:
    """Karras et al. (2206.00364), algorithm 1."""
    for sigma, sigma_next in pairwise(sigmas):
        slope = (x - denoise(x, sigma)) / sigma
        following = x + (sigma_next - sigma) * slope
        if sigma_next > 0:
            slope_there = (following - denoise(following, sigma_next)) / sigma_next
            following = x + (sigma_next - sigma) * (slope / 2 + slope_there / 2)
        x = following
    return x


def published_dpm_solver(x: Tensor, sigmas: list[float], eta: float, draw: Callable[[], Tensor]) -> Tensor:
    """Lu et al. (2211.01095), algorithm 2, with alpha = 1: lambda is -log(sigma), and exp(-h) = sigma_next / sigma."""
    past: list[tuple[Tensor, float]] = []
    for sigma, sigma_next in pairwise(sigmas):
        image = denoise(x, sigma)
        h = math.log(sigma / sigma_next) if sigma_next > 0 else math.inf
        combined = image
        if past and sigma_next > 0:
            past_image, past_h = past[-1]
            r = past_h / h
            combined = (1 + 1 / (2 * r)) * image - 1 / (2 * r) * past_image
        x = sigma_next / sigma * x - (math.exp(-h) - 1) * combined
        past.append((image, h))
    return x


def denoise(x: Tensor, sigma: float) -> Tensor:
    return torch.tanh(0.3 * x / math.hypot(1, sigma) + math.log(1 + sigma))


def run_rows(rows: list[Row], x: Tensor, draw: Callable[[], Tensor]) -> Tensor:
    memory = torch.zeros_like(x)
    for row in rows:
        image = denoise(x, row.sigma)
        rest = x - image
        x = row.image * image + row.noise * rest + row.memory * memory
        if row.fresh > 0:
            x = x + row.fresh * draw()
        memory = row.kept_image * image + row.kept_noise * rest
    return x


@pytest.mark.parametrize("prediction", ["eps", "edm"])
@pytest.mark.parametrize("steps", [1, 2, 3, 20])
@pytest.mark.parametrize(
    ("sampler", "eta", "published"),
    [
        ("ddim", 0.0, published_ddim),
        ("ddim", 0.6, published_ddim),
        ("ddpm", 0.0, published_ddim),
        ("heun", 0.0, published_heun),
        ("dpmpp", 0.0, published_dpm_solver),
    ],
)
def test_tables_are_the_published_algorithms(
    sampler: str, eta: float, published: Callable[..., Tensor], steps: int, prediction: str
) -> None:
    rows = make_rows(OBJECTIVES[prediction], sampler, steps, eta)
    sigmas = [row.sigma for row in rows if row.memory != 1] + [0.0]  # without the second halves of Heun's steps
    start = sigmas[0] * torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def stream() -> Callable[[], Tensor]:
        generator = torch.Generator().manual_seed(2)
        return lambda: torch.randn(start.shape, dtype=torch.float64, generator=generator)

    expected = published(start, sigmas, 1.0 if sampler == "ddpm" else eta, stream())
    torch.testing.assert_close(run_rows(rows, start, stream()), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("sampler", "steps", "eta"),
    [("ddpm", 500, 0.0), ("ddim", 500, 0.0), ("ddim", 500, 0.7), ("heun", 40, 0.0), ("dpmpp", 80, 0.0)],
)
@pytest.mark.parametrize("prediction", sorted(OBJECTIVES))
def test_samples_have_the_mean_and_covariance_of_the_data(
    prediction: str, sampler: str, steps: int, eta: float
) -> None:
    """The tolerance has room for the prior: N(0, 1) has not got the mean of the data, VP training keeps 1/37 of it."""
    mean, covariance = moments(gaussian(prediction), sampler, steps, eta)
    torch.testing.assert_close(mean, MEAN, rtol=0, atol=0.01)
    torch.testing.assert_close(covariance, COVARIANCE, rtol=0, atol=0.01)


@pytest.mark.parametrize(("sampler", "order"), [("ddim", 1), ("dpmpp", 2), ("heun", 2)])
def test_order_of_convergence(sampler: str, order: int) -> None:
    """Twice the steps divide the distance to the exact flow by 2 to the power of the order."""
    sample = gaussian("edm")
    expected = exact_flow(math.hypot(1, 80) * torch.eye(3, dtype=torch.float64), 80)

    def error(steps: int) -> float:
        images = sample(None, Impulses(1), sampler=sampler, steps=steps).flatten(1)[1:]
        return (images - expected).abs().max().item()

    assert math.log2(error(40) / error(80)) == pytest.approx(order, abs=0.35)


def test_one_step_returns_the_estimate_at_the_most_noise() -> None:
    objective = OBJECTIVES["eps"]
    sigma = objective.sigma_max
    start = math.hypot(1, sigma) * Impulses(1).draw()
    expected = estimate(GaussianNetwork(objective), start, objective.level(sigma), None)
    for sampler in SAMPLERS:
        images = gaussian("eps")(None, Impulses(1), sampler=sampler, steps=1)
        torch.testing.assert_close(images, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("sampler", "passes"), [("ddpm", 10), ("ddim", 10), ("dpmpp", 10), ("heun", 19)])
def test_passes_of_the_network(sampler: str, passes: int) -> None:
    times: list[Tensor] = []

    def network(x: Tensor, time: Tensor, condition: Condition | None) -> Tensor:
        times.append(time)
        return torch.zeros_like(x)

    Sampling(network, OBJECTIVES["eps"])(None, Impulses(10), sampler=sampler, steps=10)
    assert len(times) == passes
    assert all(time.shape == (31,) and time.dtype == torch.float32 for time in times)
    if sampler != "heun":
        assert [time[0].item() for time in times] == list(range(999, 0, -100))


def test_ddim_of_eta_1_is_ddpm() -> None:
    sample = gaussian("v")
    ddpm = sample(None, Impulses(25), sampler="ddpm", steps=25)
    torch.testing.assert_close(sample(None, Impulses(25), sampler="ddim", steps=25, eta=1.0), ddpm)


def convolution(x: Tensor, time: Tensor, condition: Condition | None) -> Tensor:
    weight = torch.linspace(-0.5, 0.5, 81).view(3, 3, 3, 3)
    assert condition is not None
    assert condition.cluster is not None
    shift = (time / 1000 + condition.cluster).view(-1, 1, 1, 1)
    return torch.nn.functional.conv2d(x, weight, padding=1) + torch.sin(shift)


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_an_image_is_the_same_in_any_batch(sampler: str) -> None:
    sample = Sampling(convolution, OBJECTIVES["eps"])

    def images(numbers: list[int]) -> Tensor:
        condition = Condition(cluster=torch.tensor(numbers) % 5)
        noise = NoiseSource(11, numbers, (3, 8, 8), "cpu")
        return sample(condition, noise, sampler=sampler, steps=10)

    together = images(list(range(8)))
    apart = torch.cat([images([0]), images([1, 2, 3]), images([4, 5]), images([6, 7])])
    torch.testing.assert_close(apart, together, rtol=0, atol=1e-5)
    torch.testing.assert_close(images([5, 3]), together[[5, 3]], rtol=0, atol=1e-5)
    assert together.dtype == torch.float32
    assert together.is_contiguous(memory_format=torch.channels_last)
    assert not together.requires_grad


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_clipped_samples_stay_in_range(sampler: str) -> None:
    """All but the extrapolation of the multistep solver end on a clipped estimate; its last step does too."""

    def network(x: Tensor, time: Tensor, condition: Condition | None) -> Tensor:
        return torch.sin(7 * x)

    noise = NoiseSource(0, [0, 1], (3, 8, 8), "cpu")
    images = Sampling(network, OBJECTIVES["eps"])(None, noise, sampler=sampler, steps=20)
    assert images.abs().max() <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sampler": "dpmp", "steps": 10}, r"unknown sampler 'dpmp': did you mean 'dpmpp'"),
        ({"sampler": "ddim", "steps": 0}, "steps=0 is outside 1 .. 1000"),
        ({"sampler": "ddim", "steps": 1001}, "steps=1001 is outside 1 .. 1000"),
        ({"sampler": "heun", "steps": 0}, "at least one step"),
        ({"sampler": "ddim", "steps": 10, "eta": 1.5}, r"eta=1.5 is outside \[0, 1\]"),
        ({"sampler": "heun", "steps": 10, "eta": 0.5}, "eta=0.5 is for the sampler 'ddim' alone"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, object], message: str) -> None:
    error = UnknownNameError if "unknown" in message else ValueError
    with pytest.raises(error, match=message):
        gaussian("eps")(None, Impulses(1), **arguments)  # type: ignore[arg-type]


@pytest.mark.gpu
@pytest.mark.parametrize("guidance", [UNGUIDED, Guidance(2.0, (0.5, 3.0))])
@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_sampling_never_waits_for_the_device(sampler: str, guidance: Guidance) -> None:
    weight = torch.linspace(-0.5, 0.5, 81, device="cuda").view(3, 3, 3, 3)

    def network(x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        assert condition.cluster is not None
        return torch.nn.functional.conv2d(x, weight, padding=1) + (condition.cluster + time / 1000).view(-1, 1, 1, 1)

    sample = Sampling(network, OBJECTIVES["eps"], num_clusters=4)
    condition = Condition(torch.arange(4, device="cuda"))
    noise = NoiseSource(0, range(4), (3, 8, 8), "cuda")
    sample(
        condition, noise, sampler=sampler, steps=9, guidance=guidance
    )  # libraries may wait as they set themselves up
    torch.cuda.set_sync_debug_mode("error")
    try:
        sample(condition, noise, sampler=sampler, steps=12, guidance=guidance)
    finally:
        torch.cuda.set_sync_debug_mode("default")
