"""The time that DeepSpeed's collectives take."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from deepspeed import comm

from engine.meters import Meters

COLLECTIVES = (
    "all_reduce",
    "all_reduce_coalesced",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_tensor",
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_coalesced",
    "broadcast",
    "all_to_all_single",
)


@contextmanager
def timed_collectives(meters: Meters) -> Iterator[None]:
    """Within, every collective that DeepSpeed issues is measured as `communication`: the call, and where it is
    asynchronous the wait for its end too.

    That is waiting, so what other work hides is not in it, and what other processes come late is. On CUDA it is the
    current stream that waits: collectives on a stream of their own (ZeRO's overlap_comm) show their whole time,
    hidden or not. It lies inside the phase that issues them, `backward` or `optimizer`."""
    backend: Any = comm.comm.cdb
    assert backend is not None, "deepspeed.init_distributed comes first"
    inside = False

    def timed(collective: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal inside
            if inside:  # one that is made of others
                return collective(*arguments, **options)
            inside = True
            try:
                with meters.range("communication"):
                    handle = collective(*arguments, **options)
            finally:
                inside = False
            return None if handle is None else _TimedHandle(handle, meters)

        return call

    for name in COLLECTIVES:
        setattr(backend, name, timed(getattr(backend, name)))
    try:
        yield
    finally:
        for name in COLLECTIVES:
            delattr(backend, name)  # the class's own shows again


class _TimedHandle:
    """What an asynchronous collective returns, with its wait measured."""

    def __init__(self, handle: Any, meters: Meters) -> None:
        self._handle, self._meters = handle, meters

    def wait(self, *arguments: Any, **options: Any) -> Any:
        with self._meters.range("communication"):
            return self._handle.wait(*arguments, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)
