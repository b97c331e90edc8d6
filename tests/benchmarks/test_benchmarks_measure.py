"""Interleaving and statistics, exactly, on a clock that the steps themselves turn."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import cycle

import pytest
import torch

from benchmarks.comparison import Step
from benchmarks.measure import MOST_ROUNDS, SHORTEST_SAMPLE, CudaClock, Failure, Timing, WallClock, measure


class FakeMeter(WallClock):
    """Time passes only where `work` says so."""

    def __init__(self) -> None:
        self.time = 0.0
        self.held = 0
        self.most = 0

    def now(self) -> float:
        return self.time

    def seconds_per_step(self, step: Step, steps: int) -> float:
        start = self.time
        for _ in range(steps):
            step()
        return (self.time - start) / steps

    def allocated(self) -> int:  # type: ignore[override]
        self.most = self.held
        return self.held

    def peak(self) -> int:  # type: ignore[override]
        return self.most

    def work(self, seconds: float) -> None:
        self.time += seconds

    def peer(self, times: Iterable[float], ready: float = 0.0) -> Callable[[], Step]:
        """A peer whose steps take these times, over and over, and whose making takes `ready`."""
        left = cycle(times)

        def make() -> Step:
            self.work(ready)
            return lambda: self.work(next(left))

        return make


@pytest.fixture
def meter() -> FakeMeter:
    return FakeMeter()


def timing(figures: Timing | Failure) -> Timing:
    assert isinstance(figures, Timing), figures
    return figures


def test_every_peer_takes_one_sample_a_round_and_each_goes_first_in_turn(meter: FakeMeter) -> None:
    order: list[str] = []

    def peer(name: str) -> Callable[[], Step]:
        def step() -> None:
            order.append(name)
            meter.work(1.0)

        return lambda: step

    measure({name: peer(name) for name in "abc"}, meter, seconds=4.0)
    warm_up, rounds = order[:6], order[6:]
    assert warm_up == [*"aabbcc"]
    assert "".join(rounds) == "abc" + "bca" + "cab" + "abc"


def test_median_quantiles_and_ratio_of_paired_rounds(meter: FakeMeter) -> None:
    # Two steps of warm-up and calibration come first. The machine is 1, 5 and 2 times as slow from round to round,
    # so the medians alone would tell the peers' ratio by luck only: here the second peer meets the same rounds.
    slowness = [1.0, 1.0, 1.0, 5.0, 2.0]
    results = measure(
        {"first": meter.peer([2.0 * s for s in slowness]), "second": meter.peer(slowness)}, meter, seconds=12.0
    )
    first, second = timing(results["first"]), timing(results["second"])
    assert first.samples == second.samples == 3
    assert (first.quantile_20, first.median, first.quantile_80) == pytest.approx((2.8, 4.0, 7.6))
    assert second.median == 2.0
    assert first.speedup == 1.0 and second.speedup == 2.0


def test_the_ratio_is_the_median_of_ratios_not_the_ratio_of_medians(meter: FakeMeter) -> None:
    results = measure(
        {"first": meter.peer([1, 1, 1.0, 2.0, 9.0]), "second": meter.peer([1, 1, 2.0, 1.0, 3.0])}, meter, seconds=9.0
    )
    assert timing(results["second"]).samples == 3
    assert timing(results["second"]).speedup == 2.0  # of 0.5, 2 and 3; the medians are 2.0 and 2.0


def test_short_steps_are_repeated_until_a_sample_is_long_enough(meter: FakeMeter) -> None:
    figures = timing(measure({"short": meter.peer([1e-6])}, meter, seconds=0.1)["short"])
    assert SHORTEST_SAMPLE <= figures.steps_per_sample * 1e-6 <= 2 * SHORTEST_SAMPLE
    assert figures.median == pytest.approx(1e-6)
    assert timing(measure({"long": meter.peer([1.0])}, meter, seconds=2.0)["long"]).steps_per_sample == 1


def test_one_round_at_least_however_long(meter: FakeMeter) -> None:
    results = measure({"a": meter.peer([300.0]), "b": meter.peer([600.0])}, meter, seconds=1.0)
    assert timing(results["a"]).samples == timing(results["b"]).samples == 1
    assert timing(results["a"]).median == timing(results["a"]).quantile_80 == 300.0
    assert timing(results["b"]).speedup == 0.5


def test_rounds_have_an_end(meter: FakeMeter) -> None:
    assert timing(measure({"a": meter.peer([0.01])}, meter, seconds=1e9)["a"]).samples == MOST_ROUNDS


def test_making_ready_counts_to_the_first_call_alone(meter: FakeMeter) -> None:
    figures = timing(measure({"compiled": meter.peer([20.0, 1.0, 1.0], ready=30.0)}, meter, seconds=1.0)["compiled"])
    assert figures.first_call == 50.0
    assert figures.median == 1.0


def test_memory_is_what_the_peer_adds(meter: FakeMeter) -> None:
    def make(weights: int, activations: int) -> Callable[[], Step]:
        def step() -> None:
            meter.work(1.0)
            meter.most = max(meter.most, meter.held + activations)

        def ready() -> Step:
            meter.held += weights
            return step

        return ready

    results = measure({"a": make(100, 10), "b": make(200, 30)}, meter, seconds=1.0)
    assert timing(results["a"]).peak_memory == 110
    assert timing(results["b"]).peak_memory == 230


def failing_at(call: int) -> Callable[[], Step]:
    calls = iter(range(1, 1000))

    def step() -> None:
        if next(calls) >= call:
            raise RuntimeError("no kernel takes this")

    return lambda: step


def refuse() -> Step:
    raise ImportError("no module of this name")


@pytest.mark.parametrize("broken", [refuse, failing_at(1), failing_at(2)], ids=["making", "warm-up", "calibration"])
def test_a_peer_that_raises_does_not_stop_the_others(meter: FakeMeter, broken: Callable[[], Step]) -> None:
    results = measure({"good": meter.peer([1.0]), "broken": broken}, meter, seconds=3.0)
    assert list(results) == ["good", "broken"]
    assert timing(results["good"]).samples == 6
    assert isinstance(results["broken"], Failure) and "no " in results["broken"].error


def test_a_peer_that_raises_in_a_round_takes_no_further_part(meter: FakeMeter) -> None:
    calls = iter(range(1, 1000))

    def step() -> None:
        meter.work(1.0)
        if next(calls) == 4:  # two to warm up, one round
            raise RuntimeError("out of memory")

    results = measure({"good": meter.peer([1.0]), "broken": lambda: step}, meter, seconds=4.0)
    assert results["broken"] == Failure("RuntimeError: out of memory")
    assert next(calls) == 5
    assert timing(results["good"]).samples == 6


def test_without_the_first_peer_there_is_no_ratio(meter: FakeMeter) -> None:
    results = measure({"broken": refuse, "good": meter.peer([1.0])}, meter, seconds=1.0)
    assert timing(results["good"]).speedup is None


def test_where_all_peers_raise_there_are_failures_alone(meter: FakeMeter) -> None:
    results = measure({"a": refuse, "b": failing_at(1)}, meter, seconds=1.0)
    assert all(isinstance(figures, Failure) for figures in results.values())


def test_the_wall_clock_counts_seconds_of_one_step() -> None:
    done: list[int] = []
    seconds = WallClock().seconds_per_step(lambda: done.append(sum(range(20_000))), steps=5)
    assert len(done) == 5 and 1e-6 < seconds < 1.0
    assert WallClock().allocated() is None and WallClock().peak() is None


@pytest.mark.gpu
def test_a_gpus_events_see_its_work() -> None:
    device = torch.device("cuda")
    x = torch.randn(4096, 4096, device=device)
    results = measure({"product": lambda: lambda: x @ x, "sum": lambda: x.sum}, CudaClock(device), seconds=0.2)
    product, total = timing(results["product"]), timing(results["sum"])
    # 137 GFLOP take longer than reading 67 MB, and more memory: of the result.
    assert product.median > total.median > 1e-6
    assert product.peak_memory is not None and product.peak_memory >= x.nbytes
