"""Noise schedules: the constants of the papers, and conversions that undo each other."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sgdm.diffusion.names import UnknownNameError
from sgdm.diffusion.schedule import (
    SCHEDULES,
    StepTable,
    alpha_bar_from_sigma,
    karras_grid,
    make_alpha_bar,
    sigma_from_alpha_bar,
)

TABLES = {name: StepTable(make_alpha_bar(name)) for name in SCHEDULES}


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        ("sqrt_linear", 0.9999, 7.334e-4),  # what the released code of the method trains with
        ("linear", 0.9999, 4.036e-5),
        ("cosine", 0.99996, 2.429e-9),
    ],
)
def test_ends_of_the_schedules(name: str, first: float, last: float) -> None:
    alpha_bar = make_alpha_bar(name)
    assert alpha_bar.shape == (1000,)
    assert alpha_bar.dtype == torch.float64
    assert alpha_bar[0].item() == pytest.approx(first, rel=1e-5)
    assert alpha_bar[-1].item() == pytest.approx(last, rel=1e-3)


def test_cosine_follows_its_formula_until_the_guard_acts() -> None:
    def signal(step: int) -> float:
        return math.cos((step / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2

    alpha_bar = make_alpha_bar("cosine")
    expected = torch.tensor([signal(step + 1) / signal(0) for step in range(998)], dtype=torch.float64)
    torch.testing.assert_close(alpha_bar[:998], expected, rtol=1e-9, atol=0)


def test_unknown_schedule_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"noise schedule 'sqrt_liner': did you mean 'sqrt_linear'"):
        make_alpha_bar("sqrt_liner")


def test_alpha_bar_and_sigma_convert_both_ways() -> None:
    alpha_bar = make_alpha_bar("linear")
    sigma = sigma_from_alpha_bar(alpha_bar)
    torch.testing.assert_close(alpha_bar_from_sigma(sigma), alpha_bar, rtol=1e-12, atol=0)
    torch.testing.assert_close(sigma.square() * alpha_bar, 1 - alpha_bar, rtol=1e-12, atol=0)


@given(name=st.sampled_from(sorted(SCHEDULES)), step=st.floats(0, 999))
def test_step_and_sigma_convert_both_ways(name: str, step: float) -> None:
    table = TABLES[name]
    assert table.step(table.sigma(step)) == pytest.approx(step, abs=1e-9)


@given(
    name=st.sampled_from(sorted(SCHEDULES)),
    step=st.floats(0, 998.9),
    ahead=st.floats(1e-3, 0.1),
)
def test_sigma_rises_with_the_step(name: str, step: float, ahead: float) -> None:
    assert TABLES[name].sigma(step) < TABLES[name].sigma(step + ahead)


def test_whole_steps_have_the_sigma_of_the_table() -> None:
    expected = sigma_from_alpha_bar(make_alpha_bar("sqrt_linear")).tolist()
    assert [TABLES["sqrt_linear"].sigma(step) for step in range(1000)] == pytest.approx(expected, rel=1e-12)


def test_levels_beyond_the_table_take_its_ends() -> None:
    assert TABLES["linear"].step(1e-6) == 0
    assert TABLES["linear"].step(1e6) == 999


@pytest.mark.parametrize("step", [-0.1, 999.1])
def test_steps_outside_the_schedule_are_refused(step: float) -> None:
    with pytest.raises(ValueError, match=r"outside 0 .. 999"):
        TABLES["linear"].sigma(step)


@pytest.mark.parametrize("alpha_bar", [[0.5, 0.6], [0.5, 0.5], [1.0, 0.5], [0.5, 0.0]])
def test_a_schedule_that_does_not_fall_is_refused(alpha_bar: list[float]) -> None:
    with pytest.raises(ValueError, match="fall strictly"):
        StepTable(torch.tensor(alpha_bar))


@given(total=st.integers(1, 200), data=st.data())
def test_evenly_spaced_steps(total: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, total))
    table = StepTable(torch.linspace(0.99, 0.01, total, dtype=torch.float64))
    steps = table.evenly_spaced_steps(count)
    assert len(steps) == count
    assert steps[0] == total - 1
    assert steps[-1] >= 0
    gaps = [a - b for a, b in itertools.pairwise(steps)]
    assert all(gap >= 1 for gap in gaps)
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_all_steps_are_taken_where_as_many_are_asked_for() -> None:
    assert TABLES["linear"].evenly_spaced_steps(1000) == list(range(999, -1, -1))


@pytest.mark.parametrize("count", [0, -1, 1001])
def test_a_count_of_steps_that_the_schedule_has_not_got_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=rf"steps={count} is outside 1 .. 1000"):
        TABLES["linear"].evenly_spaced_steps(count)


def test_karras_grid() -> None:
    grid = karras_grid(0.002, 80.0, 18)
    assert len(grid) == 19
    assert grid[0] == pytest.approx(80, rel=1e-12)
    assert grid[-2] == pytest.approx(0.002, rel=1e-12)
    assert grid[-1] == 0
    assert grid == sorted(grid, reverse=True)
    roots = [sigma ** (1 / 7) for sigma in grid[:-1]]
    assert [a - b for a, b in itertools.pairwise(roots)] == pytest.approx([(roots[0] - roots[-1]) / 17] * 17)


def test_karras_grid_of_one_step() -> None:
    assert karras_grid(0.002, 80.0, 1) == [80.0, 0.0]
    with pytest.raises(ValueError, match="at least one step"):
        karras_grid(0.002, 80.0, 0)
