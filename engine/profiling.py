"""`--profile n:m`: a trace of some steps of a training run, to open in chrome://tracing or Perfetto."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torch.profiler import ProfilerActivity, profile, schedule

from engine.distributed import Ranks
from engine.telemetry import say
from sgdm.files import atomic_write

FOLDER = "profile"
OPERATIONS = 15
"""Lines of the printed table."""


@contextmanager
def profiled(steps: range | None, run: Path, ranks: Ranks) -> Iterator[Callable[[], None]]:
    """Yields what to call after every optimizer step. Records `steps`, counted from 1 since this start: each process
    writes `run`/profile/trace-<rank>.json, the first one says which operations took the most time. None: nothing is
    recorded."""
    if steps is None:
        yield lambda: None
        return
    done = []

    def finish(profiler: profile) -> None:
        path = run / FOLDER / f"trace-{ranks.rank}.json"
        with atomic_write(path) as temporary:
            profiler.export_chrome_trace(str(temporary))
        done.append(path)
        if ranks.first:
            order = "self_cuda_time_total" if ranks.device.type == "cuda" else "self_cpu_time_total"
            averages = profiler.key_averages()
            say(averages.table(sort_by=order, row_limit=OPERATIONS, max_name_column_width=48).rstrip())
            say(f"profile: steps {steps[0]} to {steps[-1]} -> {path.parent}")

    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (ranks.device.type == "cuda")
    # The profiler's own start is slow; where there is a step before the first one, it falls there.
    warmup = min(1, steps[0] - 1)
    plan = schedule(skip_first=steps[0] - 1 - warmup, wait=0, warmup=warmup, active=len(steps), repeat=1)
    with profile(activities=activities, schedule=plan, on_trace_ready=finish, acc_events=True) as profiler:
        yield profiler.step
    if ranks.first and not done:
        say(f"profile: nothing recorded, the run ended before step {steps[0]}")
