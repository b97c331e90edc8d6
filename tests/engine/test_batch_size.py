from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from engine import batch_size
from engine.batch_size import LARGEST, SMALLEST, find_batch_size
from engine.distributed import alone

HERE = alone(torch.device("cpu"))


@pytest.fixture(autouse=True)
def simulated_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine's steps say how long they take, so that this one's load does not matter."""
    monkeypatch.setattr(batch_size, "_seconds", lambda work, device: work())


def machine(per_call: float, per_image: float, memory: int = LARGEST) -> Callable[[int], float]:
    """Takes so many seconds a call and an image, and runs out of memory above a number of images."""

    def step(images: int) -> float:
        if images > memory:
            raise torch.OutOfMemoryError("too much")
        return per_call + per_image * images

    return step


def test_grows_while_images_get_cheaper() -> None:
    # Of 256 images one takes 0.578 ms, of 512 0.539 ms, a fifteenth less; of 1,024 0.520 ms, a twenty-eighth less.
    assert find_batch_size(machine(0.02, 0.0005), LARGEST, HERE) == 512
    assert find_batch_size(machine(0.0, 0.002), LARGEST, HERE) == SMALLEST


def test_stops_where_memory_ends() -> None:
    assert find_batch_size(machine(0.01, 0.0, memory=32), LARGEST, HERE) == 32


def test_no_more_than_there_are_images() -> None:
    assert find_batch_size(machine(0.01, 0.0), 20, HERE) == 24


def test_batches_are_of_equal_size() -> None:
    assert find_batch_size(machine(0.01, 0.0, memory=32), 70, HERE) == 24


def test_a_device_without_room_is_an_error() -> None:
    with pytest.raises(ValueError, match="8 images at a time do not fit into the memory of cpu"):
        find_batch_size(machine(0.01, 0.0, memory=4), LARGEST, HERE)
