from __future__ import annotations

import torch

from engine.skipped import SkippedSteps


def add(steps: SkippedSteps, first: int, flags: str) -> None:
    for number, flag in enumerate(flags):
        steps.add(first + 10 * number, torch.tensor(flag == "x"))


def test_no_steps() -> None:
    assert SkippedSteps().read() == ([], 0)


def test_which_steps_and_how_many_in_a_row() -> None:
    steps = SkippedSteps()
    add(steps, 0, ".xx.x")
    assert steps.read() == ([10, 20, 40], 2)
    add(steps, 50, "..")
    assert steps.read() == ([], 0)


def test_a_row_goes_on_from_one_reading_to_the_next() -> None:
    steps = SkippedSteps()
    for first in (0, 30, 60):
        add(steps, first, "xxx")
        _, in_a_row = steps.read()
    assert in_a_row == 9
    add(steps, 90, "x..xx")
    assert steps.read() == ([90, 120, 130], 10)
    add(steps, 140, "x.")
    assert steps.read() == ([140], 3)
