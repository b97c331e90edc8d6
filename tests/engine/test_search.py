from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.search import coarse_to_fine

STEPS = [18, 32, 50, 64]


def grid(axes: dict[str, Sequence[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


class Surface:
    """One valley, tilted, with a little noise that is the same at every look; remembers where it was asked."""

    def __init__(self, best_guidance: float, best_ema: float, other_sampler: float, seed: int) -> None:
        self.best_guidance, self.best_ema, self.other_sampler, self.seed = best_guidance, best_ema, other_sampler, seed
        self.asked: list[dict[str, Any]] = []

    def __call__(self, values: dict[str, Any]) -> float:
        self.asked.append(values)
        return self.at(values)

    def at(self, values: dict[str, Any]) -> float:
        guidance, steps, ema = values["guidance_scale"], values["steps"], values.get("ema", self.best_ema)
        valley = 3 * (guidance - self.best_guidance - 0.1 * math.log(steps / 32)) ** 2
        height = 10 + valley + 60 / steps + 300 * (ema - self.best_ema) ** 2
        noise = np.random.default_rng([self.seed, int(guidance * 100), steps, int(ema * 1e4)]).normal()
        return float(height * (self.other_sampler if values["sampler"] == "dpmpp" else 1) * (1 + 0.002 * noise))


@pytest.mark.parametrize("sizes", [(17, 3, 1), (17, 3, 2), (9, 4, 3), (9, 3, 3)])
@given(guidance=st.floats(0, 4), ema=st.floats(0.03, 0.2), sampler=st.floats(0.95, 1.05), seed=st.integers(0, 1000))
@settings(max_examples=8, deadline=None)
def test_it_reaches_the_best_of_the_grid_for_a_third_of_its_cost(
    sizes: tuple[int, int, int], guidance: float, ema: float, sampler: float, seed: int
) -> None:
    axes: dict[str, Sequence[Any]] = {
        "guidance_scale": np.linspace(0, 4, sizes[0]).tolist(),
        "steps": STEPS[: sizes[1]],
        "ema": np.linspace(0.03, 0.2, sizes[2]).tolist() if sizes[2] > 1 else [0.1],
        "sampler": ["ddim", "dpmpp"],
    }
    surface = Surface(guidance, ema if sizes[2] > 1 else 0.1, sampler, seed)
    found = coarse_to_fine(axes, surface)
    assert found is not None
    assert surface.at(found) <= 1.01 * min(surface.at(values) for values in grid(axes))
    cost, whole = (sum(values["steps"] for values in some) for some in (surface.asked, grid(axes)))
    assert cost < whole / 3
    assert len({tuple(values.items()) for values in surface.asked}) == len(surface.asked)


def test_the_way_depends_on_the_answers_alone() -> None:
    axes: dict[str, Sequence[Any]] = {"guidance_scale": [0.0, 1.0, 2.0, 3.0], "steps": STEPS, "sampler": ["ddim"]}
    ways = [Surface(1.3, 0.1, 1.0, seed=5) for _ in range(2)]
    assert coarse_to_fine(axes, ways[0]) == coarse_to_fine(axes, ways[1]) and ways[0].asked == ways[1].asked


def test_a_single_point_is_measured_once() -> None:
    asked = []
    axes = {"guidance_scale": [2.0], "sampler": ["ddim"]}
    assert coarse_to_fine(axes, lambda values: asked.append(values) or 3.0) == {
        "guidance_scale": 2.0,
        "sampler": "ddim",
    }
    assert len(asked) == 1


def test_nothing_is_best_where_nothing_can_be_measured() -> None:
    assert coarse_to_fine({"guidance_scale": [0.0, 1.0, 2.0], "sampler": ["ddim", "heun"]}, lambda values: None) is None


def test_values_in_any_order_are_searched_by_their_size() -> None:
    axes = {"guidance_scale": [4.0, 0.0, 2.0, 1.0, 3.0], "sampler": ["ddim"]}
    found = coarse_to_fine(axes, lambda values: (values["guidance_scale"] - 3) ** 2)
    assert found == {"guidance_scale": 3.0, "sampler": "ddim"}
