from __future__ import annotations

import pytest
import torch

from benchmarks.memory import Case, compare


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(torch.cuda.is_available(), reason="what is measured is the memory of a CPU's processes")
@pytest.mark.parametrize("stage", [0, 2])
def test_prediction_is_within_a_tenth(stage: int) -> None:
    row = compare(Case(network="5M", stage=stage))
    assert row["measured"] > 3 * 4 * row["parameters"]  # weights and moments at the least
    assert abs(row["error"]) < 0.1
