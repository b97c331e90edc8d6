"""The sampler engine: the whole denoising step is one function of tensors, the same for every sampler.

What differs between samplers, numbers of steps and scales of guidance is a row of numbers, sent to the device
beforehand. So the step is compiled, or captured, once; the host decides by numbers of its own and never waits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from sgdm.conditions import Condition, concatenate
from sgdm.diffusion.denoiser import Level, Network
from sgdm.diffusion.guidance import UNGUIDED, Estimate, Guidance, autoguidance, classifier_free, unguided
from sgdm.diffusion.objective import Objective
from sgdm.diffusion.samplers import make_rows
from sgdm.models.embedding import Embedded

Step = Callable[[Tensor, Tensor, Tensor, Any], Tensor]
"""step(state, row, noise, condition) -> the next state.

state float [2 B, C, H, W], channels_last: the images, then the memory of samplers.Row, in the type of the noise,
whatever the network computes in; row: the numbers of the step, as Sampling makes them; noise [B, C, H, W].
"""

Embed = Callable[[Condition], Embedded]

Towards = tuple[Condition, Tensor]
"""Another condition, and the share of the way to it, float32 [B]."""


class Noise(Protocol):
    """Where the randomness of a batch comes from, see NoiseSource."""

    def draw(self) -> Tensor:
        """Standard normal [B, C, H, W]; another at each call."""


def evaluations(objective: Objective, *, sampler: str, steps: int, guidance: Guidance = UNGUIDED) -> int:
    """Passes of a network that an image takes; where it is guided, each estimate takes two."""
    scales = (guidance.at(row.sigma) for row in make_rows(objective, sampler, steps))
    return sum(1 if scale in (0.0, 1.0) else 2 for scale in scales)


class Sampling:
    """Draws batches of images with a trained network, by any sampler and with any guidance."""

    def __init__(
        self,
        network: Network,
        objective: Objective,
        *,
        embed: Embed | None = None,
        num_clusters: int | None = None,
        weak: Network | None = None,
        weak_embed: Embed | None = None,
        clip: bool = True,
        compile: Callable[[Step], Step] = lambda step: step,
    ) -> None:
        """`objective` is that of the training. `embed` makes of a condition what the network takes in its place, before
        the first step of a batch. `num_clusters` is the id of the null cluster, needed where conditions have clusters.
        With a `weak` network, which has its own `weak_embed`, guidance is autoguidance instead of classifier-free
        guidance. `clip`: estimates are clipped to [-1, 1], the range of images, as in the paper. `compile` is given the
        steps: that of one pass, that of guidance and, if there is one, that of the weak network alone.
        """
        self._objective, self._num_clusters, self._clip = objective, num_clusters, clip
        self._embed, self._weak_embed, self._has_weak = embed, weak_embed, weak is not None
        alone = compile(self._step(unguided(network)))
        if weak is None:
            guided = compile(self._step(classifier_free(network)))
            self._ways = _Ways(_Way(alone, self._null), _Way(alone, self._own), _Way(guided, self._null_and_own))
        else:
            weak_alone, guided = (compile(self._step(made)) for made in (unguided(weak), autoguidance(network, weak)))
            self._ways = _Ways(_Way(weak_alone, self._weak), _Way(alone, self._own), _Way(guided, self._own_and_weak))
        self._tables: dict[object, list[_Line]] = {}

    @torch.no_grad()
    def __call__(
        self,
        condition: Condition | None,
        noise: Noise,
        *,
        sampler: str,
        steps: int,
        eta: float = 0.0,
        guidance: Guidance = UNGUIDED,
        towards: Towards | None = None,
    ) -> Tensor:
        """Draw one batch of images: shape and type of the noise, about in [-1, 1].

        `sampler` is one of SAMPLERS, `steps` the number of its steps, `eta` in [0, 1] the randomness of "ddim".
        `towards` moves the embedding of the condition to that of another one. ValueError for an unknown sampler, for
        steps that the objective has not got, for an eta out of place, for classifier-free guidance without a condition,
        and for `towards` without a condition and its embedding.
        """
        if condition is None and not self._has_weak and guidance.scale != 1:
            raise ValueError(f"guidance_scale={guidance.scale} needs a condition; without one it must be 1")
        embeds = self._embed is not None and (self._weak_embed is not None or not self._has_weak)
        if towards is not None and (condition is None or not embeds):
            raise ValueError(
                "towards leads from one embedding to another: give a condition, and embed (with weak: weak_embed too)"
            )
        drawn = noise.draw()
        table = self._table(sampler, steps, eta, guidance, drawn)
        prepared = {way: way.prepare(condition, towards) for way in dict.fromkeys(line.way for line in table)}
        # A variance preserving model begins with N(0, 1) in its own coordinates: here that is N(0, 1 + sigma^2). EDM
        # begins with N(0, sigma^2); at its sigma of 80 that is smaller by 8e-5 of the scale.
        x = math.hypot(1, table[0].sigma) * drawn
        state = torch.cat((x, torch.zeros_like(x))).contiguous(memory_format=torch.channels_last)
        for line in table:
            if line.draws:
                drawn = noise.draw()
            state = line.way.step(state, line.numbers, drawn, prepared[line.way])
        return state[: len(x)]

    def _step(self, estimate: Estimate) -> Step:
        clip = self._clip

        def step(state: Tensor, row: Tensor, noise: Tensor, condition: Any) -> Tensor:
            x, memory = state.chunk(2)
            *level, scale, of_image, of_noise, of_memory, of_fresh, kept_image, kept_noise = row.unbind()
            image = estimate(x, Level(*level), scale, condition)
            if clip:
                image = image.clamp(-1, 1)
            rest = x - image
            x = of_image * image + of_noise * rest + of_memory * memory + of_fresh * noise
            # The layout is said, since a compiler finds one of its own, and the next step would be compiled anew.
            return torch.cat((x, kept_image * image + kept_noise * rest)).contiguous(memory_format=torch.channels_last)

        return step

    def _table(self, sampler: str, steps: int, eta: float, guidance: Guidance, noise: Tensor) -> list[_Line]:
        """Made and sent once, in the type and to the device of the noise."""
        key = sampler, steps, eta, guidance, noise.dtype, noise.device
        if key not in self._tables:
            rows = make_rows(self._objective, sampler, steps, eta)
            scales = [guidance.at(row.sigma) for row in rows]
            numbers = torch.tensor(
                [[*self._objective.level(row.sigma), scale, *row[1:]] for row, scale in zip(rows, scales, strict=True)],
                dtype=noise.dtype,
                pin_memory=noise.is_cuda,
            ).to(noise.device, non_blocking=True)
            self._tables[key] = [
                _Line(row.sigma, self._ways.at(scale), own, row.fresh > 0)
                for row, scale, own in zip(rows, scales, numbers.unbind(), strict=True)
            ]
        return self._tables[key]

    def _own(self, condition: Condition | None, towards: Towards | None) -> Any:
        return _embedded(self._embed, condition, towards)

    def _weak(self, condition: Condition | None, towards: Towards | None) -> Any:
        return _embedded(self._weak_embed, condition, towards)

    def _own_and_weak(self, condition: Condition | None, towards: Towards | None) -> Any:
        return self._own(condition, towards), self._weak(condition, towards)

    def _null(self, condition: Condition | None, towards: Towards | None) -> Any:
        assert condition is not None
        return _embedded(self._embed, condition.null(self._num_clusters), None)

    def _null_and_own(self, condition: Condition | None, towards: Towards | None) -> Any:
        assert condition is not None
        null = condition.null(self._num_clusters)
        if towards is not None:
            other, share = towards
            towards = concatenate(null, other), torch.cat((torch.zeros_like(share), share))
        return _embedded(self._embed, concatenate(null, condition), towards)


class _Way(NamedTuple):
    """How an estimate is made."""

    step: Step

    prepare: Callable[[Condition | None, Towards | None], Any]
    """What the step takes as its condition."""


class _Ways(NamedTuple):
    """By the scale w of guidance."""

    zero: _Way
    one: _Way
    other: _Way

    def at(self, scale: float) -> _Way:
        return self.zero if scale == 0 else self.one if scale == 1 else self.other


class _Line(NamedTuple):
    """A row of a sampler, ready to run."""

    sigma: float
    way: _Way
    numbers: Tensor
    draws: bool
    """Whether it takes noise of its own. Others are given what was drawn last, and multiply it by 0."""


def _embedded(embed: Embed | None, condition: Condition | None, towards: Towards | None) -> Condition | Embedded | None:
    if embed is None or condition is None:
        return condition
    embedded = embed(condition)
    if towards is None:
        return embedded
    other, share = towards
    return embedded.towards(embed(other), share)
