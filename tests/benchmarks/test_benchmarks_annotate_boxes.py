"""The peers of the case find the same boxes."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.annotate_boxes import boxes


def test_peers_find_the_same() -> None:
    (comparison,) = boxes(torch.device("cpu"), quick=True)
    found = {name: np.asarray(make()()) for name, make in comparison.peers.items()}
    assert {array.shape for array in found.values()} == {(4, 4)}
    for name, array in found.items():
        np.testing.assert_array_equal(array, found["sgdm"], err_msg=name)
