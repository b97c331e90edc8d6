"""What the machine can do at most, measured in the same run: the rates of a large copy and of a matrix product."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.comparison import Comparison, Step
from benchmarks.measure import Meter, meter_of
from engine.peak import REPEATS, Arithmetic, matmul_rate

COPY_BYTES = {"cpu": 2**28, "cuda": 2**31}
"""Size of the copied buffer: many times any cache."""


@dataclass(frozen=True)
class Limit:
    """The shortest time in which a device could do a piece of work."""

    seconds: float
    resource: str
    """What takes that time: "copy", or the arithmetic of a matrix product, as in "bf16 matmul"."""


class Limits:
    """Rates of every device and resource, each measured when it is first asked for.

    Of several repetitions the fastest counts. Data in a cache can move faster than the copy limit; so can what a
    processor changes in place, since its copy may first fetch the memory that it overwrites."""

    def __init__(self, meter_of: Callable[[torch.device], Meter] = meter_of) -> None:
        self._meter_of = meter_of
        self.rates: dict[str, dict[str, float]] = {}
        """By device and resource: bytes read and written a second for "copy", operations a second for the rest."""

    def of(self, comparison: Comparison) -> Limit | None:
        """The longest of the times that moving its bytes and doing its operations take; None if it has neither."""
        work = {"copy": comparison.bytes, f"{comparison.arithmetic} matmul": comparison.flops}
        limits = [
            Limit(amount / self.rate(comparison.device, resource), resource)
            for resource, amount in work.items()
            if amount is not None
        ]
        return max(limits, key=lambda limit: limit.seconds, default=None)

    def rate(self, device: torch.device, resource: str) -> float:
        rates = self.rates.setdefault(str(device), {})
        if resource not in rates:
            rates[resource] = self._measure(device, resource)
        return rates[resource]

    def _measure(self, device: torch.device, resource: str) -> float:
        if resource == "copy":
            return self._fastest(device, *_copy(device))
        arithmetic: Arithmetic = resource.removesuffix(" matmul")  # type: ignore[assignment]
        return matmul_rate(device, arithmetic)

    def _fastest(self, device: torch.device, step: Step, amount: int) -> float:
        meter = self._meter_of(device)
        step()
        return amount / min(meter.seconds_per_step(step, steps=1) for _ in range(REPEATS))


def _copy(device: torch.device) -> tuple[Step, int]:
    size = COPY_BYTES[device.type]
    source = torch.rand(size // 4, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source), 2 * size
