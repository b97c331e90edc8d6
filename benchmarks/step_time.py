"""`python -m benchmarks.step_time --out FILE.json`: images a second of one and two training processes on a CPU, beside
what the model of `sgdm plan` says.

The rates that the model takes (matrix products, copies, an all-reduce over loopback) are measured in the same
processes, in turns with the steps, so that whatever else the machine does slows both. Medians of the turns.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from benchmarks.machine import describe
from benchmarks.memory import CPU, Case, in_processes, make_step
from engine.distributed import Ranks
from engine.peak import matmul_rate
from engine.plan import REACHED, Gpu, copy_rate, step_time
from engine.telemetry import say
from sgdm.files import write_json

CASES = (
    Case(network="5M", stage=0, processes=1, micro_batch=8),
    *(Case(network="5M", stage=stage, processes=2, micro_batch=8) for stage in (0, 2, 3)),
)
REDUCED = 8_000_000
"""Numbers of the all-reduce."""


@dataclass(frozen=True)
class Arguments:
    """Images a second of training processes on a CPU: measured and predicted."""

    out: Annotated[Path, tyro.conf.arg(metavar="FILE.json")]
    """Where the figures go."""


def main(arguments: list[str] | None = None) -> None:
    parsed = tyro.cli(Arguments, prog="python -m benchmarks.step_time", args=arguments)
    rows: list[dict[str, Any]] = []
    say(f"{'processes':9}{'stage':>6}{'images/s':>10}{'at 50 %':>9}{'error':>8}{'reached':>9}{'at it':>10}{'error':>8}")
    for case in CASES:
        row = compare(case, rows[0]["reached"] if rows else None)
        rows.append(row)
        say(
            f"{case.processes:9}{case.stage:6}{row['measured']:10.2f}{row['predicted']:9.2f}{100 * row['error']:+7.0f}%"
            f"{100 * row['reached']:8.0f}%{row['predicted_at_share']:10.2f}{100 * row['error_at_share']:+7.0f}%"
        )
        write_json(parsed.out, describe(CPU) | {"rows": rows})
    say(f"All figures: {parsed.out.resolve()}")


def compare(case: Case, share: float | None) -> dict[str, Any]:
    """Images a second of a case, measured, predicted at the share of matrix products that plan assumes, and at `share`,
    the one that a process alone reached (of its own; None for that process)."""
    measured = [{name: statistics.median(values) for name, values in row.items()} for row in in_processes(turns, case)]
    slowest = {name: max(row[name] for row in measured) for name in ("seconds", "all_reduce")}
    rates = {name: min(row[name] for row in measured) for name in ("matmul", "copy")}
    config = case.config(Path())
    sent = 2 * 4 * REDUCED * (case.processes - 1) / case.processes
    link = sent / slowest["all_reduce"]
    this = Gpu("this CPU", 0.0, rates["matmul"], rates["copy"], link, link, "measured")
    parameters = int(measured[0]["parameters"])

    def images_per_second(reached: float) -> float:
        step = step_time(config, this, reached, case.stage, parameters, case.processes, case.accumulation)
        # A CPU's communication takes the cores that would compute: nothing overlaps.
        return config.training.batch_size / step._replace(overlaps=False).total

    images = config.training.batch_size / slowest["seconds"]
    ideal = step_time(config, this, 1.0, case.stage, parameters, case.processes, case.accumulation)
    reached = ideal.compute / (slowest["seconds"] - ideal.communication - ideal.optimizer)
    figures = {"predicted": images_per_second(REACHED), "predicted_at_share": images_per_second(share or reached)}
    return (
        asdict(case)
        | rates
        | {"loopback": link, "measured": images, "reached": reached}
        | figures
        | {name.replace("predicted", "error"): value / images - 1 for name, value in figures.items()}
    )


def turns(case: Case, folder: Path, ranks: Ranks) -> dict[str, list[float]]:
    """Seconds of steps and of an all-reduce, rates of products and copies, one after the other."""
    step, parameters = make_step(case, folder, ranks)
    step()  # with it the optimizer's state is made
    numbers = torch.zeros(REDUCED)
    found: dict[str, list[float]] = {name: [] for name in ("matmul", "copy", "all_reduce", "seconds")}
    found["parameters"] = [parameters]
    for _ in range(3):
        found["matmul"].append(matmul_rate(CPU, "fp32"))
        found["copy"].append(copy_rate(CPU))
        found["all_reduce"].append(_seconds(lambda: torch.distributed.all_reduce(numbers)))
        found["seconds"].append(_seconds(step))
    return found


def _seconds(work: Callable[[], object]) -> float:
    torch.distributed.barrier()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
