"""What was measured: a comparison with its limit and its peers' figures, and what they decide."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.comparison import Comparison
from benchmarks.limits import Limit
from benchmarks.measure import Failure, Timing


@dataclass(frozen=True)
class Measured:
    comparison: Comparison
    limit: Limit | None
    peers: dict[str, Timing | Failure]

    @property
    def timings(self) -> dict[str, Timing]:
        """Of the peers that did not fail."""
        return {name: figures for name, figures in self.peers.items() if isinstance(figures, Timing)}

    def plain(self) -> dict[str, Any]:
        """As JSON can hold it. The peers of the comparison itself are code, and are left out."""
        comparison = self.comparison
        return {
            "name": comparison.name,
            "device": str(comparison.device),
            "bytes": comparison.bytes,
            "flops": comparison.flops,
            "images": comparison.images,
            "limit": asdict(self.limit) if self.limit else None,
            "peers": {name: asdict(figures) for name, figures in self.peers.items()},
        }


def fastest(results: Iterable[Measured]) -> dict[str, dict[str, str]]:
    """The choices for kernels/dispatch.py, {operation: {key: backend}}, wherever there are two backends or more.

    Where several comparisons share a key (other batches, other heads), the backend whose product of times is the
    least, so that each of them counts alike; a backend that failed in any of them is no candidate.
    """
    medians: dict[tuple[str, str], list[dict[str, float]]] = {}
    for measured in results:
        decision, timings = measured.comparison.decision, measured.timings
        if decision is not None:
            medians.setdefault((decision.operation, decision.key), []).append(
                {backend: timings[peer].median for peer, backend in decision.backends.items() if peer in timings}
            )
    choices: dict[str, dict[str, str]] = {}
    for (operation, key), comparisons in medians.items():
        products = {
            backend: math.prod(times[backend] for times in comparisons)
            for backend in comparisons[0]
            if all(backend in times for times in comparisons)
        }
        if len(products) > 1:
            choices.setdefault(operation, {})[key] = min(products, key=products.__getitem__)
    return choices
