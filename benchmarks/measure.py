"""Interleaved measurement: every peer takes one sample a round, so that all of them meet the same machine.

A machine changes while it is measured: clocks fall as it warms, neighbours come and go. Peers measured one after
the other each meet another machine; the ratio of two samples of one round does not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from benchmarks.comparison import Step

SHORTEST_SAMPLE = 2e-3
"""Seconds. A sample repeats shorter steps until it is as long, far above what the clocks resolve."""

MOST_ROUNDS = 100


@dataclass(frozen=True)
class Timing:
    """A peer's figures. Times are seconds of one step."""

    median: float
    quantile_20: float
    quantile_80: float
    speedup: float | None
    """Median over the rounds of (the first peer's time / this one's): above 1 is faster than the first. None where
    the first peer failed."""
    samples: int
    steps_per_sample: int
    first_call: float
    """Making ready and the first step: compiling, where a peer compiles."""
    peak_memory: int | None
    """Bytes of the device that the peer holds at most, beside what all peers share. None where it is not known."""


@dataclass(frozen=True)
class Failure:
    """A peer that raised, and what."""

    error: str


class Meter(Protocol):
    """Reads the time and the memory of a device."""

    def now(self) -> float:
        """Seconds, after all work that the device was given."""

    def seconds_per_step(self, step: Step, steps: int) -> float:
        """Mean over `steps` steps, one after the other."""

    def allocated(self) -> int | None:
        """Bytes held now, from which the peak is counted again; None where it is not known."""

    def peak(self) -> int | None:
        """Most bytes held since `allocated` was asked."""


class WallClock:
    """For work that is done when the call returns."""

    def now(self) -> float:
        return time.perf_counter()

    def seconds_per_step(self, step: Step, steps: int) -> float:
        start = time.perf_counter()
        for _ in range(steps):
            step()
        return (time.perf_counter() - start) / steps

    def allocated(self) -> None:
        return None

    def peak(self) -> None:
        return None


class CudaClock:
    """A GPU's own events around every step, which starts with nothing of its inputs in the L2 cache.

    Clearing the cache also gives the host a head start of some 50 us. Launches that take longer than that and the
    step itself are in the figure, as a user would meet them.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        cache_bytes = torch.cuda.get_device_properties(device).L2_cache_size
        self._cache = torch.empty(4 * cache_bytes, dtype=torch.int8, device=device)

    def now(self) -> float:
        torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def seconds_per_step(self, step: Step, steps: int) -> float:
        with torch.cuda.device(self.device):
            pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(steps)]
            for start, end in pairs:
                self._cache.zero_()
                start.record()
                step()
                end.record()
            torch.cuda.synchronize()
        return sum(start.elapsed_time(end) for start, end in pairs) / 1e3 / steps

    def allocated(self) -> int:
        torch.cuda.reset_peak_memory_stats(self.device)
        return torch.cuda.memory_allocated(self.device)

    def peak(self) -> int:
        return torch.cuda.max_memory_allocated(self.device)


def meter_of(device: torch.device) -> Meter:
    return CudaClock(device) if device.type == "cuda" else WallClock()


def measure(
    peers: Mapping[str, Callable[[], Step]],
    meter: Meter,
    seconds: float,
    announce: Callable[[str], None] = lambda doing: None,
) -> dict[str, Timing | Failure]:
    """Figures of every peer, in their order.

    Each is made ready and warmed up; then come rounds, until `seconds` have passed for each peer or there are
    MOST_ROUNDS, and one round at least. In a round every peer takes one sample; the order rotates from round to
    round, so that no peer always follows the same one. A peer that raises takes no further part.
    """
    ready: dict[str, _Ready] = {}
    failures: dict[str, Failure] = {}
    for name, make in peers.items():
        announce(f"{name}, warming up")
        try:
            ready[name] = _warm_up(make, meter)
        except Exception as error:  # whatever a peer raises is its result
            failures[name] = _failure(error)

    start, rounds = meter.now(), 0
    while rounds < MOST_ROUNDS and (rounds == 0 or meter.now() - start < seconds * len(peers)):
        first = rounds % len(peers)
        names = [*peers][first:] + [*peers][:first]
        for name in names:
            if name in failures:
                continue
            announce(f"{name}, round {rounds + 1}")
            try:
                peer = ready[name]
                peer.times.append(meter.seconds_per_step(peer.step, peer.steps_per_sample))
            except Exception as error:
                failures[name] = _failure(error)
        rounds += 1
        if len(failures) == len(peers):
            break

    base = next(iter(peers))
    base_times = None if base in failures else ready[base].times
    return {name: failures[name] if name in failures else ready[name].timing(base_times) for name in peers}


@dataclass
class _Ready:
    """A peer that is warmed up, and its samples so far: one a round."""

    step: Step
    steps_per_sample: int
    first_call: float
    peak_memory: int | None
    times: list[float]

    def timing(self, base_times: list[float] | None) -> Timing:
        low, median, high = (float(value) for value in np.quantile(self.times, (0.2, 0.5, 0.8)))
        return Timing(
            median=median,
            quantile_20=low,
            quantile_80=high,
            speedup=None if base_times is None else float(np.median(np.divide(base_times, self.times))),
            samples=len(self.times),
            steps_per_sample=self.steps_per_sample,
            first_call=self.first_call,
            peak_memory=self.peak_memory,
        )


def _warm_up(make: Callable[[], Step], meter: Meter) -> _Ready:
    held, start = meter.allocated(), meter.now()
    step = make()
    step()
    first_call = meter.now() - start

    steps = 1
    while (sample := steps * meter.seconds_per_step(step, steps)) < SHORTEST_SAMPLE:
        # A first guess from a cold, short sample is rough, so it grows at most tenfold at a time.
        steps = min(10 * steps, math.ceil(1.2 * steps * SHORTEST_SAMPLE / max(sample, 1e-9)))
    peak = meter.peak()
    memory = None if held is None or peak is None else peak - held
    return _Ready(step, steps, first_call, memory, times=[])


def _failure(error: Exception) -> Failure:
    return Failure(f"{type(error).__name__}: {error}")
