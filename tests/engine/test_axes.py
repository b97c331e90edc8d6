from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import axes
from engine.config_error import ConfigError
from engine.sampling_config import SweepConfig


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("2", (2.0,)),
        ("0,1.5, 4", (0.0, 1.5, 4.0)),
        ("0:4:0.25", tuple(number / 4 for number in range(17))),
        ("0:1:0.1", (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)),
        ("0:1:0.4", (0.0, 0.4, 0.8)),
        ("-1,1:3:1,9", (-1.0, 1.0, 2.0, 3.0, 9.0)),
        ("1e-3", (0.001,)),
        ("5:5:1", (5.0,)),
    ],
)
def test_numbers(text: str, values: tuple[float, ...]) -> None:
    assert axes.numbers("sweep.guidance", text) == values


@given(first=st.decimals(-100, 100, places=3), step=st.decimals("0.001", 10, places=3), count=st.integers(1, 200))
def test_ranges_hold_both_ends_and_the_nearest_floats(first: Decimal, step: Decimal, count: int) -> None:
    last = first + step * (count - 1)
    assert axes.numbers("x", f"{first}:{last}:{step}") == tuple(float(first + step * n) for n in range(count))


@given(st.text(st.sampled_from("0123456789.,:-e n"), max_size=12))
def test_any_text_is_numbers_or_an_error_that_names_it(text: str) -> None:
    try:
        assert all(isinstance(value, float) for value in axes.numbers("sweep.ema", text))
    except ConfigError as error:
        assert str(error).startswith("sweep.ema ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds '', which is no number"),
        ("1,,2", "holds '', which is no number"),
        ("one", "holds 'one', which is no number: give numbers, as in 0:4:0.25"),
        ("0:4", "holds '0:4': give from:to:step"),
        ("0:4:0", "which leads nowhere"),
        ("4:0:1", "which leads nowhere"),
        ("0:4:-1", "which leads nowhere"),
        ("inf", "which is no number"),
        ("1,2,1", "holds 1.0 twice"),
        ("0:1:0.00001", "more than 10,000 values"),
    ],
)
def test_what_does_not_parse(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        SweepConfig(guidance=text)
    assert message in str(error.value) and "sweep.guidance" in str(error.value)


def test_steps_are_whole_numbers() -> None:
    assert SweepConfig(steps="18,32,50").values == {"steps": (18, 32, 50)}
    for text in ("2.5", "0", "-3"):
        with pytest.raises(ConfigError, match=r"sweep.steps holds .*: give whole numbers of at least 1"):
            SweepConfig(steps=text)


def test_samplers_are_names() -> None:
    assert SweepConfig(sampler="ddim, dpmpp").values == {"sampler": ("ddim", "dpmpp")}
    with pytest.raises(ConfigError, match=r"sweep\.sampler holds 'dpm': give some of ddpm, ddim, heun, dpmpp"):
        SweepConfig(sampler="ddim,dpm")


def test_intervals() -> None:
    assert SweepConfig(interval="0.3..5,none,1e-3..2").values == {"interval": ((0.3, 5.0), None, (0.001, 2.0))}
    for text, message in (("5", "as in 0.3..5,none"), ("5..1", "which is empty"), ("a..1", "which is no number")):
        with pytest.raises(ConfigError) as error:
            SweepConfig(interval=text)
        assert message in str(error.value)
