"""What a training step tells of itself, gathered where it arises: time by phase, loss by noise level, gradient norms.

Between two log lines nothing waits for the device: sums stay on it, and CUDA times are pairs of events."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor

Phase = Literal["data", "forward", "backward", "optimizer", "communication"]
PHASES: tuple[Phase, ...] = get_args(Phase)

LEVELS = 10
"""Bins of equal probability, from the least noise to the most, that the loss is told apart by."""


class _Clock(Protocol):
    """Sums of the milliseconds of each phase since they were last read."""

    def start(self) -> Any: ...

    def stop(self, phase: Phase, started: Any) -> None: ...

    def collect(self) -> None:
        """Takes in what has ended, without waiting."""

    def read(self) -> list[float]:
        """Milliseconds by phase, in the order of PHASES, of all that was stopped; begins anew."""


class _WallClock:
    """For work that is done when the call returns."""

    def __init__(self) -> None:
        self.sums = dict.fromkeys(PHASES, 0.0)

    def start(self) -> float:
        return time.perf_counter()

    def stop(self, phase: Phase, started: float) -> None:
        self.sums[phase] += 1e3 * (time.perf_counter() - started)

    def collect(self) -> None:
        pass

    def read(self) -> list[float]:
        sums, self.sums = self.sums, dict.fromkeys(PHASES, 0.0)
        return list(sums.values())


class _StreamClock:
    """The device's own time between two points of the current stream. Events are used again once they are read."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.sums = dict.fromkeys(PHASES, 0.0)
        self.pending: deque[tuple[Phase, torch.cuda.Event, torch.cuda.Event]] = deque()
        self.free: list[torch.cuda.Event] = []

    def start(self) -> torch.cuda.Event:
        event = self.free.pop() if self.free else torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def stop(self, phase: Phase, started: torch.cuda.Event) -> None:
        self.pending.append((phase, started, self.start()))

    def collect(self) -> None:
        while self.pending and self.pending[0][2].query():
            phase, started, ended = self.pending.popleft()
            self.sums[phase] += started.elapsed_time(ended)
            self.free += [started, ended]

    def read(self) -> list[float]:
        while self.pending:
            self.pending[0][2].synchronize()
            self.collect()
        sums, self.sums = self.sums, dict.fromkeys(PHASES, 0.0)
        return list(sums.values())


class _Range:
    """One measured stretch of a phase: a context manager, not a generator, which would cost as much again."""

    def __init__(self, clock: _Clock, phase: Phase, nvtx: bool, traced: bool) -> None:
        self.clock, self.phase, self.nvtx = clock, phase, nvtx
        self.record = torch.profiler.record_function(phase) if traced else None

    def __enter__(self) -> None:
        if self.nvtx:
            torch.cuda.nvtx.range_push(self.phase)
        if self.record is not None:
            self.record.__enter__()
        self.started = self.clock.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.clock.stop(self.phase, self.started)
        if self.record is not None:
            self.record.__exit__(kind, error, traceback)
        if self.nvtx:
            torch.cuda.nvtx.range_pop()


class Meters:
    """The meters of one process. A step calls `range`, `add` once a micro-batch and `step`; a log line `read`."""

    def __init__(self, device: torch.device, traced: bool = False) -> None:
        """traced: name the ranges in torch's profiler too, which costs some ten microseconds each."""
        self.device = device
        self.traced = traced
        self._clock: _Clock = _StreamClock(device) if device.type == "cuda" else _WallClock()
        self._steps = 0
        # Of the step that runs: by level, the sum of its losses and their number. It counts once it is known to stand.
        self._step = torch.zeros(LEVELS, 2, dtype=torch.float64, device=device)
        # Since the last log line: the same of all steps that stand, then the sum of gradient norms and the steps.
        self._sums = torch.zeros(2 * LEVELS + 2, dtype=torch.float64, device=device)

    def range(self, phase: Phase) -> _Range:
        """Measures what is done within, as `phase`: on a CPU by the wall clock; on CUDA the time that the current
        stream takes from one end to the other, its waiting for the host included, with an NVTX range of that name.

        So the phase `data` around the wait for a batch is what the device misses and not what it prepares meanwhile.
        Ranges may lie in one another; each counts whole."""
        return _Range(self._clock, phase, self.device.type == "cuda", self.traced)

    def add(self, losses: Tensor, levels: Tensor) -> None:
        """The images of a micro-batch: losses float32 [B], and the quantiles of their noise levels, float32 [B] in
        [0, 1): the uniform numbers that drew them. No host sync."""
        bins = (levels * LEVELS).long().clamp_(0, LEVELS - 1)
        losses = losses.detach().double()
        self._step.index_add_(0, bins, torch.stack([losses, torch.ones_like(losses)], dim=1))

    def step(self, gradient_norm: Tensor, skipped: Tensor) -> None:
        """The end of an optimizer step. gradient_norm, skipped: one number each, float and bool, on the device.

        A skipped step is counted, and nothing else of it: its losses may be infinite. No host sync."""
        self._steps += 1
        stands = torch.ones_like(self._sums[-1])
        sums = torch.cat([self._step.flatten(), torch.stack([gradient_norm.detach().double(), stands])])
        self._sums += torch.where(skipped, 0.0, sums)
        self._step.zero_()
        self._clock.collect()

    def read(self, reduce: Callable[[Tensor], None] | None = None) -> dict[str, Any]:
        """The means of all steps since the last call, for one log line; begins anew. The one host sync.

        reduce: adds up a float64 tensor over the processes, in place; every process calls `read` then, and all get
        the same. Fields: `steps`, `skipped_steps`; `loss`, the mean over images, and `gradient_norm`, nan where every
        step was skipped; `loss_by_level`, one a bin, None where it has no image; `step_ms`, milliseconds of each phase
        a step, the mean over processes."""
        host = torch.tensor([*self._clock.read(), self._steps, 1], dtype=torch.float64)
        packed = torch.cat([self._sums, host.to(self.device)])
        if reduce is not None:
            reduce(packed)
        *by_level, norm, stand = packed[: 2 * LEVELS + 2].tolist()
        *times, all_steps, processes = packed[2 * LEVELS + 2 :].tolist()
        self._steps = 0
        self._sums.zero_()
        losses, images = by_level[::2], by_level[1::2]
        steps = round(all_steps / processes)
        return {
            "steps": steps,
            "skipped_steps": steps - round(stand / processes),
            "loss": _mean(sum(losses), sum(images)),
            "gradient_norm": _mean(norm, stand),
            "loss_by_level": [total / count if count else None for total, count in zip(losses, images, strict=True)],
            "step_ms": {phase: round(total / max(all_steps, 1), 3) for phase, total in zip(PHASES, times, strict=True)},
        }


def _mean(total: float, count: float) -> float:
    return total / count if count else float("nan")
