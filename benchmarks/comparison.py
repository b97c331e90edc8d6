"""What a benchmark is made of: a case yields comparisons; the peers of a comparison do the same work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch

from engine.peak import Arithmetic

Step = Callable[[], object]
"""Does the work once. What it returns is dropped."""


@dataclass(frozen=True)
class Decision:
    """A choice of kernels/dispatch.py that the figures can make."""

    operation: str
    key: str
    backends: Mapping[str, str]
    """The backend that a peer stands for; peers that are no candidates are left out."""


@dataclass(frozen=True)
class Comparison:
    """One piece of work, and the peers that do it. They are measured in turns."""

    name: str
    """What the work is, its sizes first: the name of the case stands above it."""

    peers: Mapping[str, Callable[[], Step]]
    """By name, what makes each peer ready. The others are compared with the first. Both making it ready and its steps
    may raise: the error is reported in the peer's place, so a peer imports its own library when it is made ready."""

    device: torch.device
    """Where the work is done, and so by which clock it is measured: the device's, or the wall clock for "cpu"."""

    bytes: int | None = None
    """Every input read once, every output written once."""

    flops: int | None = None
    """Floating-point operations that the work needs, a multiplication and an addition counted as two."""

    arithmetic: Arithmetic = "fp32"
    """The fastest arithmetic that any peer uses, whose matrix rate limits the work."""

    images: int | None = None
    """Images a step works on, where images a second say more than seconds."""

    decision: Decision | None = None


@dataclass(frozen=True)
class Case:
    """A named benchmark of the command line."""

    name: str
    description: str
    """One line."""

    comparisons: Callable[[torch.device, bool], Iterator[Comparison]]
    """Given (device, quick). Each comparison is measured before the next is asked for, so what one of them needs can
    be made just before it and freed after."""
