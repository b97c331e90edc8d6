"""Parts are chosen by name; a wrong name is answered with the names that exist, the nearest first."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TypeVar

Part = TypeVar("Part")


class UnknownNameError(ValueError):
    """A name that no part has."""


def choose(kind: str, name: str, parts: Mapping[str, Part]) -> Part:
    """The part called `name`; UnknownNameError with the nearest names where there is none."""
    if name in parts:
        return parts[name]
    nearest = difflib.get_close_matches(name, parts, n=1)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    raise UnknownNameError(f"unknown {kind} {name!r}: {hint}known are {', '.join(map(repr, parts))}")
