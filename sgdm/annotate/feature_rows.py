"""Rows of features as clusters need them: of unit length, a block or a sample in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

BLOCK = 16_384
"""Features in memory at a time: 50 MB in float32 at 768 dimensions."""


class Features(Protocol):
    """float16 or float32 [N, D] that need not fit in memory: an array, a memmap, or a set of shards."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> np.ndarray:
        """[n, D], for a slice or ascending int64 [n]."""
        ...


def unit_rows(features: Features, rows: slice | np.ndarray) -> np.ndarray:
    """float32 [n, D]: rows of the features, brought to unit length; `rows` is a slice or ascending int64 [n].

    ValueError where one is zero or not finite, naming the first by its image number.
    """
    block = np.array(features[rows], np.float32, order="C")
    with np.errstate(over="ignore"):
        length = np.sqrt(np.einsum("nd,nd->n", block, block))
    unusable = ~(np.isfinite(length) & (length > 0))
    if unusable.any():
        numbers = range(len(features))[rows] if isinstance(rows, slice) else rows
        raise ValueError(
            f"{int(unusable.sum())} features are zero or not finite, the first that of image "
            f"{int(numbers[int(unusable.argmax())])}: extract the features again, and look at the encoder's weights"
        )
    block /= length[:, None]
    return block


def blocks(count: int) -> Iterator[slice]:
    """All rows of `count`, BLOCK at a time."""
    for start in range(0, count, BLOCK):
        yield slice(start, min(start + BLOCK, count))


def sample_rows(count: int, size: int, seed: int) -> np.ndarray:
    """int64 [size]: different rows of `count` at random, ascending, so that files are read in one sweep."""
    if size == count:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, size, replace=False, shuffle=False))
