from __future__ import annotations

import os

import pytest
import torch

if not torch.cuda.is_available():
    # Before kernels/ is imported: without a GPU its Triton kernels run in Triton's interpreter, on CPU tensors.
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
