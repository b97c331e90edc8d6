from __future__ import annotations

import numpy as np
import pytest
from triton.runtime import interpreter


@pytest.fixture(autouse=True)
def sum_in_a_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter's tl.sum adds row after row; a GPU adds in a tree, whose rounding is smaller. NumPy adds the last
    axis pairwise."""

    def add(self: interpreter.ReduceOps, values: interpreter.tl.tensor) -> interpreter.tl.tensor:
        if self.axis is None:
            total = values.handle.data.sum()
        else:
            total = np.ascontiguousarray(np.moveaxis(values.handle.data, self.axis, -1)).sum(axis=-1)
            total = np.expand_dims(total, self.axis) if self.keep_dims else total
        return self.to_tensor(total, values.dtype)

    monkeypatch.setattr(interpreter.ReduceOps, "sum", add)
