"""Runs cases: measures, shows and writes what was measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.comparison import Case
from benchmarks.limits import Limits
from benchmarks.machine import describe
from benchmarks.measure import Meter, measure, meter_of
from benchmarks.results import Measured, fastest
from benchmarks.table import LEGEND, notes, table_of
from engine.telemetry import console, errors, say
from sgdm.files import write_json


def run(
    cases: Iterable[Case],
    device: torch.device,
    quick: bool,
    seconds: float,
    out: Path | None,
    meter_of: Callable[[torch.device], Meter] = meter_of,
) -> dict[str, Any]:
    """Measures the cases and shows a table of each. Returns what `out` is given, after every comparison anew."""
    limits = Limits(meter_of)
    report: dict[str, Any] = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "finished": None,
        "device": str(device),
        "quick": quick,
        "seconds_per_peer": seconds,
        **describe(device),
        "limits": limits.rates,
        "choices": {},
        "cases": [],
    }
    for case in cases:
        results: list[Measured] = []
        entry: dict[str, Any] = {"name": case.name, "description": case.description, "comparisons": []}
        report["cases"].append(entry)
        # Progress goes to the error stream, so that a redirected output holds the tables alone.
        with errors.status(case.name) as status:
            for comparison in case.comparisons(device, quick):
                where = f"{case.name}: {comparison.name}"
                if not errors.is_terminal:
                    errors.print(where, markup=False)
                status.update(f"{where}: limit")
                limit = limits.of(comparison)
                peers = measure(
                    comparison.peers,
                    meter_of(comparison.device),
                    seconds,
                    announce=lambda doing, where=where: status.update(f"{where}: {doing}"),  # type: ignore[misc]
                )
                results.append(Measured(comparison, limit, peers))
                entry["comparisons"].append(results[-1].plain())
                if out:
                    write_json(out, report)
        say(f"{case.name}: {case.description}")
        report["choices"] |= fastest(results)
        console.print(table_of(results), soft_wrap=False)
        for line in notes(results):
            say(line)
        say("")
    say(LEGEND)
    report["finished"] = datetime.now(UTC).isoformat(timespec="seconds")
    if out:
        write_json(out, report)
    return report
