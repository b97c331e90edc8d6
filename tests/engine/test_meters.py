from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from engine.meters import LEVELS, PHASES, Meters, _StreamClock

CPU = torch.device("cpu")
GPU = pytest.param("cuda", marks=pytest.mark.gpu)


def yes(device: torch.device = CPU) -> torch.Tensor:
    return torch.ones((), dtype=torch.bool, device=device)


@pytest.mark.parametrize("name", ["cpu", GPU])
def test_means_are_those_of_all_images_by_level_and_begin_anew(name: str) -> None:
    device = torch.device(name)
    generator = np.random.default_rng(0)
    losses, levels = generator.random((3, 40), dtype=np.float32), generator.random((3, 40), dtype=np.float32)
    meters = Meters(device)
    for _ in range(2):  # the second time as if there had been no first
        for row in range(3):
            for micro in (slice(0, 15), slice(15, 40)):
                meters.add(
                    torch.tensor(losses[row, micro], device=device), torch.tensor(levels[row, micro], device=device)
                )
            meters.step(torch.tensor(float(row), device=device), ~yes(device))
        found = meters.read()
        assert found["loss"] == pytest.approx(losses.astype(np.float64).mean(), rel=1e-12)
        assert found["gradient_norm"] == pytest.approx(1.0)
        assert found["steps"] == 3 and found["skipped_steps"] == 0
        bins = np.floor(levels * LEVELS).astype(int)
        expected = [losses[bins == number].astype(np.float64).mean() for number in range(LEVELS)]
        np.testing.assert_allclose(found["loss_by_level"], expected, rtol=1e-12)


def test_the_highest_level_and_a_level_without_images() -> None:
    meters = Meters(CPU)
    meters.add(torch.tensor([2.0, 4.0]), torch.tensor([1.0, 0.0]))  # 1: what float32 makes of numbers just below
    meters.step(torch.tensor(1.0), ~yes())
    assert meters.read()["loss_by_level"] == [4.0, *[None] * 8, 2.0]


def test_of_a_skipped_step_nothing_but_its_number_counts() -> None:
    meters = Meters(CPU)
    for loss, norm in ((3.0, 1.0), (float("inf"), float("nan")), (5.0, 2.0)):
        meters.add(torch.tensor([loss]), torch.tensor([0.5]))
        meters.step(torch.tensor(norm), torch.tensor(norm).isnan())
    found = meters.read()
    assert (found["loss"], found["gradient_norm"], found["skipped_steps"], found["steps"]) == (4.0, 1.5, 1, 3)


def test_a_loss_that_is_not_finite_in_a_step_that_stands_shows() -> None:
    meters = Meters(CPU)
    for loss in (1.0, float("nan")):
        meters.add(torch.tensor([loss]), torch.tensor([0.5]))
        meters.step(torch.tensor(1.0), ~yes())
    assert np.isnan(meters.read()["loss"])
    assert np.isnan(meters.read()["loss"])  # of no image


def test_losses_keep_no_graph() -> None:
    meters = Meters(CPU)
    weight = torch.ones(2, requires_grad=True)
    meters.add(weight * 2, torch.zeros(2))
    meters.step((weight**2).sum(), ~yes())
    assert not meters._sums.requires_grad


def test_processes_are_added_up() -> None:
    """Two processes with other images, other times: means over all images, and the times' over the processes."""
    both = [Meters(CPU), Meters(CPU)]
    for meters, loss, norm in zip(both, ([1.0], [2.0, 6.0]), (7.0, 7.0), strict=True):
        meters.add(torch.tensor(loss), torch.full((len(loss),), 0.31))
        meters.step(torch.tensor(norm), ~yes())
        meters.step(torch.tensor(norm), yes())
    with both[1].range("data"):
        time.sleep(0.02)
    packed: list[torch.Tensor] = []
    both[1].read(packed.append)

    def reduce(tensor: torch.Tensor) -> None:
        tensor += packed[0]

    found = both[0].read(reduce)
    assert (found["loss"], found["gradient_norm"]) == (3.0, 7.0)
    assert (found["steps"], found["skipped_steps"]) == (2, 1)
    assert found["loss_by_level"][3] == 3.0
    assert 5.0 <= found["step_ms"]["data"] < 50  # 20 ms over two steps and two processes


def test_phases_are_told_apart_and_may_lie_in_one_another() -> None:
    meters = Meters(CPU)
    with meters.range("backward"):
        time.sleep(0.01)
        with meters.range("communication"):
            time.sleep(0.02)
    with meters.range("data"):
        time.sleep(0.005)
    meters.step(torch.tensor(1.0), ~yes())
    spent = meters.read()["step_ms"]
    assert tuple(spent) == PHASES
    assert 20 <= spent["communication"] < spent["backward"] - 9
    assert 5 <= spent["data"] < spent["backward"] and spent["forward"] == spent["optimizer"] == 0
    assert meters.read()["step_ms"] == dict.fromkeys(PHASES, 0.0)


def test_an_error_within_a_range_passes() -> None:
    meters = Meters(CPU)
    with pytest.raises(StopIteration), meters.range("data"):
        next(iter(()))


def test_ranges_cost_microseconds() -> None:
    meters = Meters(CPU)
    start = time.perf_counter()
    for _ in range(2000):
        with meters.range("forward"):
            pass
    assert (time.perf_counter() - start) / 2000 < 50e-6  # some 2 us on a quiet machine


def test_ranges_are_named_in_a_trace() -> None:
    for traced in (False, True):
        meters = Meters(CPU, traced=traced)
        activities = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=activities) as profile, meters.range("optimizer"):
            torch.ones(3).sum()
        assert ("optimizer" in {event.key for event in profile.key_averages()}) is traced


class Event:
    """Stands for CUDA's where there is none: `now` is the device's clock, of which `passed` is over."""

    made, now, passed = 0, 0.0, 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        Event.made += 1

    def record(self, stream: None) -> None:
        Event.now += 1
        self.time = Event.now

    def query(self) -> bool:
        return self.time <= Event.passed

    def synchronize(self) -> None:
        Event.passed = max(Event.passed, self.time)

    def elapsed_time(self, end: Event) -> float:
        assert self.query() and end.query()
        return end.time - self.time


def test_events_are_read_once_they_have_passed_and_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    clock = _StreamClock(torch.device("cuda"))
    for _ in range(2):
        outer = clock.start()
        clock.stop("communication", clock.start())  # within: one tick of three
        clock.stop("backward", outer)
    Event.passed = 4  # the device has done the first half
    clock.collect()
    assert len(clock.pending) == 2 and Event.made == 8
    clock.stop("data", clock.start())
    assert Event.made == 8 and Event.passed == 4
    assert clock.read() == [1.0, 0.0, 6.0, 0.0, 2.0]
    assert clock.read() == [0.0] * 5 and len(clock.free) == 8


@pytest.mark.gpu
def test_device_time_is_measured_without_waiting_for_it() -> None:
    device = torch.device("cuda")
    meters, matrix = Meters(device), torch.randn(8192, 8192, device=device)
    matrix @ matrix
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            with meters.range("forward"):
                for _ in range(10):
                    matrix @ matrix
            meters.add(torch.ones(4, device=device), torch.rand(4, device=device))
            meters.step(torch.ones((), device=device), torch.zeros((), dtype=torch.bool, device=device))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    start = time.perf_counter()
    spent = meters.read()["step_ms"]
    assert time.perf_counter() - start > 0.005  # the device was still at work
    assert spent["forward"] > 10 and spent["data"] == 0
    assert len(meters._clock.free) == 6  # type: ignore[attr-defined]
