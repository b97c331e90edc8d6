"""Objectives: a network that knows the answer has no loss and denoises exactly; weights follow their papers."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sgdm.conditions import Condition
from sgdm.diffusion.denoiser import estimate
from sgdm.diffusion.names import UnknownNameError
from sgdm.diffusion.objective import EDM, Objective, VariancePreserving, make_objective
from sgdm.diffusion.schedule import make_alpha_bar

PREDICTIONS = ["eps", "x0", "v", "edm"]
ALPHA_BAR = make_alpha_bar("sqrt_linear")


def batch(size: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    """Images, noise and the uniform numbers (k + 1/2) / size."""
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(size, 3, 4, 4, generator=generator) * 2 - 1
    noise = torch.randn(size, 3, 4, 4, generator=generator)
    return image, noise, (torch.arange(size) + 0.5) / size


def sigma_of_time(prediction: str, time: Tensor) -> Tensor:
    """float64 [B, 1, 1, 1], from the definitions of the papers rather than from the code under test."""
    if prediction == "edm":
        sigma = (time.double() / 250).exp()
    else:
        alpha_bar = ALPHA_BAR[time.long()]
        sigma = ((1 - alpha_bar) / alpha_bar).sqrt()
    return sigma.view(-1, 1, 1, 1)


def true_target(prediction: str, sigma: Tensor, image: Tensor, noise: Tensor) -> Tensor:
    signal = 1 / (1 + sigma.square()).sqrt()  # sqrt(alpha_bar)
    match prediction:
        case "eps":
            return noise
        case "x0":
            return image
        case "v":
            return signal * noise - sigma * signal * image
        case _:  # (image - c_skip x) / c_out with the constants of Karras et al., table 1, sigma_data 0.5
            skip = 0.25 / (sigma.square() + 0.25)
            output_scale = sigma * 0.5 / (sigma.square() + 0.25).sqrt()
            return (image - skip * (image + sigma * noise)) / output_scale


def perfect_network(prediction: str, image: Tensor, noise: Tensor) -> Callable[..., Tensor]:
    def network(x: Tensor, time: Tensor, condition: Condition | None) -> Tensor:
        return true_target(prediction, sigma_of_time(prediction, time), image.double(), noise.double())

    return network


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_perfect_network_has_no_loss(prediction: str) -> None:
    image, noise, uniform = batch()
    loss = make_objective(prediction).loss(perfect_network(prediction, image, noise), image, None, noise, uniform)
    assert loss.shape == (64,)
    assert loss.dtype == torch.float32
    assert loss.max() < 1e-9


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_perfect_network_denoises_to_the_image(prediction: str) -> None:
    image, noise, _ = (value.double() for value in batch(4))
    objective = make_objective(prediction)
    network = perfect_network(prediction, image, noise)
    if isinstance(objective, VariancePreserving):
        sigmas = [objective.steps.sigma(step) for step in (0, 40, 500, 999)]
    else:
        sigmas = [0.05, 0.3, 1.0, 10.0]
    for sigma in sigmas:
        estimated = estimate(network, image + sigma * noise, objective.level(sigma), None)
        torch.testing.assert_close(estimated, image, rtol=0, atol=2e-6 * (1 + sigma))


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_network_sees_unit_variance_and_its_time(prediction: str) -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def network(x: Tensor, time: Tensor, condition: Condition | None) -> Tensor:
        seen.append((x, time))
        return torch.zeros_like(x)

    # Noise levels are (nearly) the same in all 40,000 images of a level; images have the variance EDM assumes.
    generator = torch.Generator().manual_seed(2)
    scale = 0.5 if prediction == "edm" else 1.0
    image = scale * torch.randn(3, 3, 64, 64, generator=generator)
    noise = torch.randn(3, 3, 64, 64, generator=generator)
    objective = make_objective(prediction)
    objective.loss(network, image, None, noise, torch.tensor([0.0005, 0.5, 0.9995]))
    x, time = seen[0]
    assert x.flatten(1).std(dim=1).tolist() == pytest.approx([1, 1, 1], rel=0.03)
    expected = [250 * (-1.2 + 1.2 * q) for q in (-3.2905, 0, 3.2905)] if prediction == "edm" else [0, 500, 999]
    assert time.dtype == torch.float32
    assert time.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_training_and_denoising_call_the_network_alike(prediction: str) -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def network(x: Tensor, time: Tensor, condition: Condition | None) -> Tensor:
        seen.append((x, time))
        return torch.zeros_like(x)

    image, noise, _ = batch(1)
    objective = make_objective(prediction)
    uniform = torch.tensor([0.4])
    objective.loss(network, image, None, noise, uniform)
    sigma = objective.draw_level(uniform)[0].item()
    estimate(network, image + sigma * noise, objective.level(sigma), None)
    torch.testing.assert_close(seen[0][0], seen[1][0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(seen[0][1], seen[1][1], rtol=1e-5, atol=1e-3)


def test_consistent_networks_of_all_predictions_are_the_same_denoiser() -> None:
    """One eps network; the others are computed from its eps, in VP coordinates as the papers write them."""

    def eps_network(x: Tensor, time: Tensor, condition: Condition | None) -> Tensor:
        return torch.tanh(x + time.view(-1, 1, 1, 1) / 1000)

    def others(prediction: str) -> Callable[..., Tensor]:
        def network(x: Tensor, time: Tensor, condition: Condition | None) -> Tensor:
            sigma = sigma_of_time("eps", time)
            signal = 1 / (1 + sigma.square()).sqrt()
            eps = eps_network(x, time, condition)
            return true_target(prediction, sigma, (x - sigma * signal * eps) / signal, eps)

        return network

    x = 5 * batch(2)[1].double()
    for step in (0, 17, 600, 999):
        estimates = []
        for prediction in ("eps", "x0", "v"):
            objective = make_objective(prediction)
            assert isinstance(objective, VariancePreserving)
            network = eps_network if prediction == "eps" else others(prediction)
            estimates.append(estimate(network, x, objective.level(objective.steps.sigma(step)), None))
        torch.testing.assert_close(estimates[1], estimates[0], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(estimates[2], estimates[0], rtol=1e-9, atol=1e-9)


def zeros(x: Tensor, time: Tensor, condition: Condition | None) -> Tensor:
    return torch.zeros_like(x)


@pytest.mark.parametrize("gamma", [None, 1.0, 5.0])
@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_min_snr_weights(prediction: str, gamma: float | None) -> None:
    """Against the formulas of the paper, by the loss of a network that always says 0."""
    image, noise, uniform = batch(50)
    loss = make_objective(prediction, "sqrt_linear", gamma).loss(zeros, image, None, noise, uniform)
    alpha_bar = ALPHA_BAR[(uniform * 1000).long()]
    snr = alpha_bar / (1 - alpha_bar)
    weight = torch.ones_like(snr)
    if gamma is not None:
        clipped = snr.clamp(max=gamma)
        weight = {"eps": clipped / snr, "x0": clipped, "v": clipped / (snr + 1)}[prediction]
    sigma = (1 / snr).sqrt().view(-1, 1, 1, 1)
    error = true_target(prediction, sigma, image.double(), noise.double()).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(loss.double(), weight * error, rtol=2e-5, atol=0)


def test_edm_weight_is_lambda_on_the_image() -> None:
    """lambda(sigma) |D - image|^2 with lambda = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2, of zero outputs."""
    image, noise, uniform = batch(20)
    objective = EDM()
    loss = objective.loss(zeros, image, None, noise, uniform)
    sigma = objective.draw_level(uniform)[0].double().view(-1, 1, 1, 1)
    estimate = 0.25 / (sigma.square() + 0.25) * (image + sigma * noise)
    weight = (sigma.square() + 0.25) / (sigma * 0.5).square()
    expected = (weight * (estimate - image).square()).mean(dim=(1, 2, 3))
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)


def test_edm_noise_levels_are_log_normal() -> None:
    uniform = (torch.arange(10_000) + 0.5) / 10_000
    sigma, _ = EDM().draw_level(uniform)
    assert sigma.log().mean().item() == pytest.approx(-1.2, abs=1e-3)
    assert sigma.log().std().item() == pytest.approx(1.2, rel=1e-3)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_ends_of_the_uniform_range_are_safe(prediction: str) -> None:
    uniform = torch.tensor([0.0, 1 - 2.0**-24])  # the least and the largest that torch.rand gives
    sigma, time = make_objective(prediction).draw_level(uniform)
    assert sigma.isfinite().all()
    assert sigma.min() > 0
    assert time.isfinite().all()


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_loss_is_float32_under_autocast(prediction: str) -> None:
    layer = torch.nn.Conv2d(3, 3, 3, padding=1)
    outputs: list[torch.dtype] = []

    def network(x: Tensor, time: Tensor, condition: Condition | None) -> Tensor:
        result: Tensor = layer(x)
        outputs.append(result.dtype)
        return result

    image, noise, uniform = batch(8)
    objective = make_objective(prediction)
    exact = objective.loss(network, image, None, noise, uniform)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = objective.loss(network, image, None, noise, uniform)
        denoised = estimate(network, image, objective.level(1.0), None)
    assert outputs == [torch.float32, torch.bfloat16, torch.bfloat16]
    assert loss.dtype == denoised.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=0.02, atol=0.02)


def test_low_precision_ends_at_the_networks_output() -> None:
    def network(x: Tensor, time: Tensor, condition: Condition | None) -> Tensor:
        return torch.full_like(x, 0.3, dtype=torch.bfloat16)

    x = batch(1)[0]
    image = estimate(network, x, make_objective("eps").level(3.7), None)
    torch.testing.assert_close(image, x - 3.7 * torch.tensor(0.3).bfloat16().item(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("prediction", "gamma"), [("eps", 5.0), ("x0", None), ("v", 5.0), ("edm", None)])
def test_loss_compiles_whole(prediction: str, gamma: float | None) -> None:
    layer = torch.nn.Conv2d(4, 3, 3, padding=1)

    def network(x: Tensor, time: Tensor, condition: Condition | None) -> Tensor:
        assert condition is not None
        assert condition.cluster is not None
        extra = (time + condition.cluster).view(-1, 1, 1, 1).expand(-1, 1, 4, 4) / 1000
        result: Tensor = layer(torch.cat((x, extra), dim=1))
        return result

    image, noise, uniform = batch(8)
    condition = Condition(cluster=torch.arange(8))
    objective = make_objective(prediction, min_snr_gamma=gamma)
    compiled = torch.compile(objective.loss, fullgraph=True, backend="aot_eager")
    loss = compiled(network, image, condition, noise, uniform)
    torch.testing.assert_close(loss, objective.loss(network, image, condition, noise, uniform))
    loss.sum().backward()
    assert layer.weight.grad is not None


def test_a_cast_that_would_ruin_the_schedule_is_noticed() -> None:
    with pytest.raises(AssertionError, match="low precision"):
        make_objective("eps").bfloat16().draw_level(torch.rand(2))


def test_the_table_moves_with_the_objective() -> None:
    objective = make_objective("eps").to("meta")
    assert objective.draw_level(torch.rand(2, device="meta"))[0].device.type == "meta"
    assert not objective.state_dict()
    assert not list(objective.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("epss",), r"prediction 'epss': did you mean 'eps'\? known are 'eps', 'x0', 'v', 'edm'"),
        (("eps", "cosin"), "noise schedule 'cosin': did you mean 'cosine'"),
        (("EDM",), "unknown prediction 'EDM'"),
    ],
)
def test_unknown_names_are_refused(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        make_objective(*arguments)  # type: ignore[arg-type]


def test_weights_out_of_place_are_refused() -> None:
    with pytest.raises(ValueError, match="no place in 'edm'"):
        make_objective("edm", min_snr_gamma=5.0)
    with pytest.raises(ValueError, match="must be above 0"):
        make_objective("eps", min_snr_gamma=0.0)


def objectives() -> list[Objective]:
    return [make_objective(prediction) for prediction in ("eps", "edm")]


@pytest.mark.parametrize("objective", objectives(), ids=["eps", "edm"])
def test_grids_fall_from_the_most_noise_to_none(objective: Objective) -> None:
    grid = objective.sigma_grid(20)
    assert len(grid) == 21
    assert grid == sorted(grid, reverse=True)
    assert grid[0] == pytest.approx(objective.sigma_max, rel=1e-9)
    assert grid[-1] == 0
    assert math.isfinite(objective.time(grid[0]))
