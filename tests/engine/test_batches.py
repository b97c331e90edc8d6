from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.batches import Batches, share


def fill(batches: Batches, numbers: np.ndarray) -> None:
    batches.write(numbers, {"square": numbers**2, "first": numbers[numbers < 4]})


@given(
    missing=st.lists(st.integers(0, 200), unique=True).map(sorted),
    batch_size=st.integers(1, 20),
    world_size=st.integers(1, 7),
)
@settings(deadline=None)
def test_processes_share_what_is_missing(missing: list[int], batch_size: int, world_size: int) -> None:
    numbers = np.array(missing, np.int64)
    turns = [list(share(numbers, batch_size, rank, world_size)) for rank in range(world_size)]
    assert sum(together for _, together in turns[0]) == len(missing)
    shares = [[batch for batch, _ in own] for own in turns]
    assert sorted(number for own in shares for batch in own for number in batch.tolist()) == missing
    assert all(0 < len(batch) <= batch_size for own in shares for batch in own)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_another_batch_size_and_number_of_processes_go_on(tmp_path: Path) -> None:
    batches = Batches(tmp_path / "batches", 10, "key")
    batches.begin()
    assert batches.missing().tolist() == list(range(10))
    fill(batches, np.array([0, 1, 2]))
    fill(batches, np.array([6, 7]))
    again = Batches(tmp_path / "batches", 10, "key")
    again.begin()
    assert again.missing().tolist() == [3, 4, 5, 8, 9]
    with pytest.raises(ValueError, match="has square of 5 of 10 images"):
        again.gather("square")
    for numbers, _ in share(again.missing(), 4, 0, 1):
        fill(again, numbers)
    assert again.gather("square").tolist() == [number**2 for number in range(10)]
    assert again.gather("first", 4).tolist() == [0, 1, 2, 3]
    again.remove()
    assert not again.folder.exists()


@pytest.mark.parametrize(("count", "key"), [(10, "another"), (11, "key")])
def test_batches_of_anything_else_are_deleted(tmp_path: Path, count: int, key: str) -> None:
    batches = Batches(tmp_path, 10, "key")
    batches.begin()
    fill(batches, np.arange(10))
    other = Batches(tmp_path, count, key)
    other.begin()
    assert len(other.missing()) == count


def test_a_damaged_file_is_made_anew(tmp_path: Path) -> None:
    batches = Batches(tmp_path, 6, "key")
    batches.begin()
    fill(batches, np.arange(3))
    fill(batches, np.arange(3, 6))
    file = batches.files()[1]
    file.write_bytes(file.read_bytes()[:100])
    batches.begin()
    assert batches.missing().tolist() == [3, 4, 5]
