"""Training objectives: what the network predicts, at which noise levels, and how its error is weighted.

The network F sees x = image + sigma * noise, scaled to about unit variance, and predicts a * image + b * noise. Two
equations for image and noise: solved, they give the denoiser in the form of Karras et al. (2206.00364, equation 7),
D(x) = c_skip x + c_out F(c_in x), with c_skip = -b / (a sigma - b) and c_out = sigma / (a sigma - b).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from sgdm.conditions import Condition
from sgdm.diffusion.denoiser import Level, Network
from sgdm.diffusion.names import choose
from sgdm.diffusion.schedule import StepTable, alpha_bar_from_sigma, karras_grid, make_alpha_bar, sigma_from_alpha_bar

Pair = tuple[Tensor, Tensor]


class Objective(nn.Module, ABC):
    """A way to train a denoiser. It has no parameters; `objective.to(device)` moves its table, once."""

    sigma_min: float
    sigma_max: float

    @abstractmethod
    def draw_level(self, uniform: Tensor) -> Pair:
        """Noise levels and network times, both float32 [B], of uniform numbers [B] in [0, 1)."""

    @abstractmethod
    def time(self, sigma: float) -> float:
        """The network's time input at a noise level."""

    @abstractmethod
    def input_scale(self, sigma: Tensor) -> Tensor:
        """c_in: what brings x to unit variance, any shape."""

    @abstractmethod
    def target(self, sigma: Tensor) -> Pair:
        """(a, b) of the target a * image + b * noise, each of the shape of `sigma`."""

    @abstractmethod
    def weight(self, sigma: Tensor) -> Tensor:
        """Weight of the squared error of the target, of the shape of `sigma`."""

    @abstractmethod
    def sigma_grid(self, steps: int) -> list[float]:
        """Noise levels for sampling in `steps` steps: falling, [steps + 1], the last is 0."""

    def skip_and_output_scale(self, sigma: Tensor) -> Pair:
        """(c_skip, c_out) of the denoiser c_skip * x + c_out * prediction, each of the shape of `sigma`."""
        image, noise = self.target(sigma)
        determinant = image * sigma - noise
        return -noise / determinant, sigma / determinant

    def level(self, sigma: float) -> Level:
        """What a sampler needs of a noise level, in float64 on the host."""
        value = torch.tensor(sigma, dtype=torch.float64)
        time = torch.tensor(self.time(sigma), dtype=torch.float64)
        return Level(self.input_scale(value), time, *self.skip_and_output_scale(value))

    def loss(
        self, network: Network, image: Tensor, condition: Condition | None, noise: Tensor, uniform: Tensor
    ) -> Tensor:
        """Weighted squared error of each image, a mean over its pixels: float32 [B], also under autocast.

        `image` in [-1, 1] and `noise` standard normal, both [B, C, H, W]; `uniform` float32 [B] in [0, 1) draws
        the noise level.
        """
        sigma, time = self.draw_level(uniform)
        target_image, target_noise = self.target(sigma)
        x = image + _per_image(sigma) * noise
        prediction = network(_per_image(self.input_scale(sigma)) * x, time, condition)
        target = _per_image(target_image) * image + _per_image(target_noise) * noise
        return self.weight(sigma) * (prediction.float() - target).square().mean(dim=(1, 2, 3))


class VariancePreserving(Objective):
    """T discrete steps; the network's time is the step 0 .. T-1, or a fraction where a sampler is between two."""

    sigmas: Tensor

    def __init__(self, alpha_bar: Tensor, prediction: str, min_snr_gamma: float | None = None) -> None:
        """`alpha_bar` float64 [T], falling; `prediction` one of PREDICTIONS; `min_snr_gamma` above 0, usually 5."""
        super().__init__()
        if min_snr_gamma is not None and min_snr_gamma <= 0:
            raise ValueError(f"min_snr_gamma={min_snr_gamma} must be above 0; leave it out for uniform weights")
        self._target = choose("prediction", prediction, PREDICTIONS)
        self._min_snr_gamma = min_snr_gamma
        self.steps = StepTable(alpha_bar)
        self.sigma_min, self.sigma_max = self.steps.sigma(0), self.steps.sigma(len(self.steps) - 1)
        self.register_buffer("sigmas", sigma_from_alpha_bar(alpha_bar.double()).float(), persistent=False)

    def draw_level(self, uniform: Tensor) -> Pair:
        assert self.sigmas.dtype == torch.float32, "a cast of the whole module to low precision ruins the schedule"
        step = (uniform * len(self.sigmas)).long()
        return self.sigmas[step], step.float()

    def time(self, sigma: float) -> float:
        return self.steps.step(sigma)

    def input_scale(self, sigma: Tensor) -> Tensor:
        return alpha_bar_from_sigma(sigma).sqrt()

    def target(self, sigma: Tensor) -> Pair:
        return self._target(sigma)

    def weight(self, sigma: Tensor) -> Tensor:
        """Ones, or min-SNR-gamma (Hang et al. 2303.09556, section 3.4).

        They weight the squared error of the image by min(SNR, gamma), with SNR = 1 / sigma^2. The error of the
        target is that of the image divided by c_out, hence c_out^2: it gives their min(SNR, gamma) / SNR for eps
        and min(SNR, gamma) / (SNR + 1) for v.
        """
        if self._min_snr_gamma is None:
            return torch.ones_like(sigma)
        _, output_scale = self.skip_and_output_scale(sigma)
        return sigma.square().reciprocal().clamp(max=self._min_snr_gamma) * output_scale.square()

    def sigma_grid(self, steps: int) -> list[float]:
        """Evenly spaced training steps, see StepTable.evenly_spaced_steps; ValueError outside 1 .. T."""
        return [self.steps.sigma(step) for step in self.steps.evenly_spaced_steps(steps)] + [0.0]


class EDM(Objective):
    """Karras et al. (2206.00364), table 1: log-normal noise levels, for images of standard deviation 0.5.

    The network's time is their ln(sigma) / 4 times 1000, the range that sinusoidal embeddings of steps expect.
    """

    SIGMA_DATA = 0.5
    LOG_SIGMA_MEAN, LOG_SIGMA_DEVIATION = -1.2, 1.2

    sigma_min, sigma_max = 0.002, 80.0

    def draw_level(self, uniform: Tensor) -> Pair:
        # A uniform float32 is exactly 0 once in 2^24 draws, where the normal quantile is minus infinity.
        normal = torch.special.ndtri(uniform.clamp(min=2.0**-25))
        log_sigma = self.LOG_SIGMA_MEAN + self.LOG_SIGMA_DEVIATION * normal
        return log_sigma.exp(), 250 * log_sigma

    def time(self, sigma: float) -> float:
        return 250 * math.log(sigma)

    def input_scale(self, sigma: Tensor) -> Tensor:
        return (sigma.square() + self.SIGMA_DATA**2).rsqrt()

    def target(self, sigma: Tensor) -> Pair:
        scale = self.input_scale(sigma)
        return scale * sigma / self.SIGMA_DATA, -scale * self.SIGMA_DATA

    def weight(self, sigma: Tensor) -> Tensor:
        """Ones: their lambda is 1 / c_out^2 on the image's error, which is 1 on the target's (equation 8)."""
        return torch.ones_like(sigma)

    def sigma_grid(self, steps: int) -> list[float]:
        return karras_grid(self.sigma_min, self.sigma_max, steps)


def _predict_noise(sigma: Tensor) -> Pair:
    return torch.zeros_like(sigma), torch.ones_like(sigma)


def _predict_image(sigma: Tensor) -> Pair:
    return torch.ones_like(sigma), torch.zeros_like(sigma)


def _predict_velocity(sigma: Tensor) -> Pair:
    """sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) image (Salimans & Ho 2202.00512, appendix D)."""
    scale = alpha_bar_from_sigma(sigma).sqrt()
    return -sigma * scale, scale


PREDICTIONS = {"eps": _predict_noise, "x0": _predict_image, "v": _predict_velocity}


def make_objective(prediction: str, schedule: str = "sqrt_linear", min_snr_gamma: float | None = None) -> Objective:
    """The objective that predicts "eps", "x0" or "v" under a schedule of T = 1000 steps, or "edm".

    "edm" draws log-normal noise, so `schedule` says nothing to it. ValueError for an unknown name, and for
    `min_snr_gamma` with "edm", whose weights are part of its preconditioning.
    """
    if prediction == "edm":
        if min_snr_gamma is not None:
            raise ValueError(f"min_snr_gamma={min_snr_gamma} has no place in 'edm'; leave it out")
        return EDM()
    choose("prediction", prediction, {**PREDICTIONS, "edm": None})  # so that its error knows "edm" too
    return VariancePreserving(make_alpha_bar(schedule), prediction, min_snr_gamma)


def _per_image(value: Tensor) -> Tensor:
    return value.view(-1, 1, 1, 1)
