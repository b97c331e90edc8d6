"""The values of a sweep's axes, as text.

0:4:0.25 is from 0 to 4 by 0.25, both ends among them; 18,32,50 is a list; both mix. An interval is low..high, or none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation
from typing import TypeVar

from engine.config_error import ConfigError, require

MOST_VALUES = 10_000

Value = TypeVar("Value")
Interval = tuple[float, float] | None


def numbers(option: str, text: str) -> tuple[float, ...]:
    """Of an axis of numbers. ConfigError names the option and what does not parse."""
    return _values(option, text, lambda piece: _range(option, piece))


def whole_numbers(option: str, text: str) -> tuple[int, ...]:
    """Of an axis of numbers of at least 1."""
    found = numbers(option, text)
    for value in found:
        require(value == int(value) and value >= 1, f"{option} holds {value:g}: give whole numbers of at least 1")
    return tuple(int(value) for value in found)


def names(option: str, text: str, known: Sequence[str]) -> tuple[str, ...]:
    """Of an axis of these names."""

    def one(piece: str) -> list[str]:
        require(
            piece in known, f"{option} holds {piece!r}: give some of {', '.join(known)}, as in {','.join(known[:2])}"
        )
        return [piece]

    return _values(option, text, one)


def intervals(option: str, text: str) -> tuple[Interval, ...]:
    """Of an axis of noise levels between which guidance acts."""

    def one(piece: str) -> list[Interval]:
        if piece == "none":
            return [None]
        low, dots, high = piece.partition("..")
        require(bool(dots), f"{option} holds {piece!r}: give intervals of sigma or none, as in 0.3..5,none")
        interval = float(_number(option, low)), float(_number(option, high))
        require(interval[0] < interval[1], f"{option} holds {piece!r}, which is empty: give low..high, as in 0.3..5")
        return [interval]

    return _values(option, text, one)


def _values(option: str, text: str, parse: Callable[[str], list[Value]]) -> tuple[Value, ...]:
    found: list[Value] = []
    for piece in text.split(","):
        for value in parse(piece.strip()):
            require(value not in found, f"{option} {text!r} holds {value} twice: leave one out")
            found.append(value)
    return tuple(found)


def _range(option: str, piece: str) -> list[float]:
    """Decimal, so that nothing is rounded on the way: 0:1:0.1 holds 0.3 and not 0.30000000000000004."""
    ends = piece.split(":")
    if len(ends) == 1:
        return [float(_number(option, piece))]
    require(len(ends) == 3, f"{option} holds {piece!r}: give from:to:step, as in 0:4:0.25, or a list, as in 1,2.5")
    first, last, step = (_number(option, end) for end in ends)
    require(
        step > 0 and first <= last, f"{option} holds {piece!r}, which leads nowhere: give from:to:step, as in 0:4:0.25"
    )
    count = (last - first) / step
    require(
        count < MOST_VALUES, f"{option} holds {piece!r}, which are more than {MOST_VALUES:,} values: take a wider step"
    )
    return [float(first + step * number) for number in range(math.floor(count) + 1)]


def _number(option: str, text: str) -> Decimal:
    try:
        value = Decimal(text.strip())
    except InvalidOperation:
        value = Decimal("nan")
    if not value.is_finite():
        raise ConfigError(f"{option} holds {text!r}, which is no number: give numbers, as in 0:4:0.25 or 1,2.5")
    return value
