"""How a long function of the method tells its caller that work moves: it calls `advance(images_done)`."""

from __future__ import annotations

from collections.abc import Callable

Advance = Callable[[int], None]


def ignore(images: int) -> None:
    """The default listener, for callers who do not watch."""
