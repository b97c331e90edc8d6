"""From the command line to table and JSON, with cases that cost nothing."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from benchmarks import __main__ as command
from benchmarks import limits as limits_module
from benchmarks.cases import CASES
from benchmarks.comparison import Case, Comparison, Decision
from benchmarks.limits import Limit, Limits
from benchmarks.measure import Failure, Timing
from benchmarks.results import Measured, fastest
from benchmarks.run import run
from benchmarks.table import duration, notes, table_of
from engine import peak
from kernels import dispatch

CPU = torch.device("cpu")


def sleeping(seconds: float) -> Comparison:
    def broken() -> None:
        raise RuntimeError("this peer [is] broken")

    peers = {
        "slow": lambda: lambda: time.sleep(2 * seconds),
        "fast": lambda: lambda: time.sleep(seconds),
        "broken": lambda: broken,
    }
    return Comparison(f"sleep {seconds}", peers, CPU, bytes=1_000_000, flops=1_000, images=10)


def sleep(device: torch.device, quick: bool) -> Iterator[Comparison]:
    yield sleeping(0.002)
    if not quick:
        yield sleeping(0.004)


def interrupted(device: torch.device, quick: bool) -> Iterator[Comparison]:
    yield sleeping(0.002)
    raise KeyboardInterrupt


FAKES = {case.name: case for case in (Case("sleep", "two naps", sleep), Case("killed", "a nap", interrupted))}


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits_module, "COPY_BYTES", {"cpu": 2**20})
    monkeypatch.setattr(peak, "MATRIX_SIZE", {"cpu": 64})


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "CASES", FAKES)


def test_a_run_ends_in_a_table_and_in_json(tmp_path: Path, fakes: None, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "figures.json"
    command.main(["sleep", "--device", "cpu", "--seconds", "0.02", "--out", str(out)])

    report = json.loads(out.read_text())
    assert [path.name for path in out.parent.iterdir()] == ["figures.json"]
    assert report["finished"] >= report["started"]
    assert report["device"] == "cpu" and report["quick"] is False and report["seconds_per_peer"] == 0.02
    assert report["machine"]["torch_threads"] == torch.get_num_threads()
    assert report["machine"]["cpu"] and report["machine"]["memory_bytes"] > 0
    assert report["versions"]["torch"] == torch.__version__.split("+")[0]
    assert set(report["commit"]) == {"revision", "dirty"}
    assert report["limits"]["cpu"]["copy"] > 0 and report["limits"]["cpu"]["fp32 matmul"] > 0
    (case,) = report["cases"]
    assert case["name"] == "sleep" and [c["name"] for c in case["comparisons"]] == ["sleep 0.002", "sleep 0.004"]
    first = case["comparisons"][0]
    assert first["bytes"] == 1_000_000 and first["flops"] == 1_000 and first["images"] == 10
    assert first["limit"]["seconds"] > 0 and first["limit"]["resource"] == "copy"
    assert list(first["peers"]) == ["slow", "fast", "broken"]
    fast = first["peers"]["fast"]
    assert 0.002 <= fast["quantile_20"] <= fast["median"] <= fast["quantile_80"]
    assert 1.0 < fast["speedup"] < 4.0
    assert fast["samples"] >= 1 and fast["steps_per_sample"] == 1 and fast["peak_memory"] is None
    assert first["peers"]["broken"] == {"error": "RuntimeError: this peer [is] broken"}

    screen = capsys.readouterr().out
    for text in ("sleep: two naps", "slow", "fast", "limit: copy", "speedup", "images/s", "failed", "[is] broken"):
        assert text in screen
    assert screen.splitlines()[-1] == f"All figures: {out}"
    assert "speedup: against the first peer" in screen


def test_what_was_measured_before_an_interruption_is_kept(
    tmp_path: Path, fakes: None, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "figures.json"
    with pytest.raises(SystemExit) as stopped:
        command.main(["sleep", "killed", "--device", "cpu", "--quick", "--out", str(out)])
    assert stopped.value.code == 130
    assert f"what was measured is in {out}" in capsys.readouterr().err
    report = json.loads(out.read_text())
    assert report["finished"] is None
    assert [len(case["comparisons"]) for case in report["cases"]] == [1, 1]


def test_list_names_every_case_and_runs_none(capsys: pytest.CaptureFixture[str]) -> None:
    command.main(["--list"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(CASES)
    assert all(len(line.split()) > 3 for line in lines)


def test_an_unknown_case_names_the_nearest_and_all(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main(["atention", "--device", "cpu"])
    message = capsys.readouterr().err
    assert stopped.value.code == 2
    assert "there is no case atention; did you mean attention?" in message
    assert all(name in message for name in CASES)


def test_without_names_every_case_once_in_the_order_given() -> None:
    assert [case.name for case in command.choose(())] == list(CASES)
    assert [case.name for case in command.choose(("ema_update", "attention", "ema_update"))] == [
        "ema_update",
        "attention",
    ]


@pytest.mark.parametrize("device", ["gpu", "meta", "cuda:99"])
def test_a_device_that_cannot_be_measured_is_refused(device: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main(["ema_update", "--device", device])
    assert stopped.value.code == 2 and f"--device {device}" in capsys.readouterr().err


def test_cases_can_be_run_from_python() -> None:
    report = run([FAKES["sleep"]], CPU, quick=True, seconds=0.01, out=None)
    assert report["cases"][0]["comparisons"][0]["peers"]["fast"]["median"] >= 0.002


def test_the_limit_is_the_longest_of_what_the_work_needs() -> None:
    limits = Limits()
    limits.rates["cpu"] = {"copy": 100.0, "fp32 matmul": 1000.0}

    def limit(**work: int) -> Limit | None:
        return limits.of(Comparison("work", {}, CPU, **work))

    assert limit() is None
    assert limit(bytes=300) == Limit(3.0, "copy")
    assert limit(bytes=300, flops=5000) == Limit(5.0, "fp32 matmul")


def test_limits_are_measured_once_and_only_where_asked_for() -> None:
    limits = Limits()
    first = limits.rate(CPU, "copy")
    assert first > 0 and list(limits.rates["cpu"]) == ["copy"]
    assert limits.rate(CPU, "copy") is first
    assert limits.rate(CPU, "bf16 matmul") > 0


def figures(median: float, samples: int = 10) -> Timing:
    return Timing(median, 0.9 * median, 1.2 * median, 1.0, samples, 1, first_call=0.1, peak_memory=None)


@pytest.mark.parametrize("width", [80, 160])
def test_the_widest_names_of_the_cases_fit_a_narrow_screen(width: int) -> None:
    compiled = replace(figures(2e-3), first_call=51.7, peak_memory=12_300_000_000)
    peers = {"bf16 compiled triton": compiled, "gone": Failure("no GPU")}
    for comparison in (
        Comparison("75.3 M weights, batch 512", {}, CPU, images=512),
        Comparison("512x128x64x64 scaled, both passes", {}, CPU),
    ):
        screen = io.StringIO()
        Console(width=width, file=screen).print(table_of([Measured(comparison, Limit(1e-3, "bf16 matmul"), peers)]))
        _, name, peer, gone, limit = (" ".join(line.split()) for line in screen.getvalue().splitlines())
        assert name == comparison.name
        assert peer.replace("256,000 ", "") == "bf16 compiled triton 2.00 ms 30% 1.00x 50% 51.7 s 12.3 GB"
        assert ("256,000" in peer) == (comparison.images is not None)
        assert gone == "gone failed"
        assert limit == "limit: bf16 matmul 1.00 ms"


def test_columns_that_say_nothing_are_left_out() -> None:
    measured = Measured(Comparison("work", {}, CPU), None, {"peer": figures(1.0, samples=1)})
    assert [column.header for column in table_of([measured]).columns] == ["", "median", "speedup"]


def test_notes_explain_failures_and_shares_above_the_limit() -> None:
    comparison = Comparison("work", {}, CPU, bytes=1)
    measured = Measured(comparison, Limit(2.0, "copy"), {"fast": figures(1.0), "broken": Failure("ValueError: no")})
    failure, cache = notes([measured])
    assert failure == "work: broken failed: ValueError: no"
    assert "cache" in cache


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (123.4, "123 s"),
        (1.0, "1.00 s"),
        (0.0123, "12.3 ms"),
        (9.996e-4, "1,000 us"),
        (4.2e-6, "4.20 us"),
        (2e-9, "2.00 ns"),
    ],
)
def test_durations_have_three_digits_and_a_unit(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def deciding(key: str, **medians: float) -> Measured:
    peers: dict[str, Timing | Failure] = {name: figures(median) for name, median in medians.items()}
    decision = Decision("norm", key, {"inductor": "plain", "triton": "triton"})
    return Measured(Comparison("work", {}, CPU, decision=decision), None, {**peers, "broken": Failure("no")})


def test_the_fastest_backend_of_a_key_over_all_its_comparisons() -> None:
    results = [
        deciding("a", eager=1.0, inductor=2.0, triton=3.0),
        deciding("b", inductor=1.0, triton=3.0),
        deciding("b", inductor=9.0, triton=2.0),
        deciding("failed once", inductor=3.0, triton=1.0),
        deciding("failed once", inductor=3.0),
        deciding("alone", triton=1.0),
        Measured(Comparison("decides nothing", {}, CPU), None, {"inductor": figures(1.0)}),
    ]
    assert fastest(results) == {"norm": {"a": "plain", "b": "triton"}}


def test_choices_are_saved_where_the_kernels_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def decide(device: torch.device, quick: bool) -> Iterator[Comparison]:
        decision = Decision("attention", "a key", {"slow": "math", "fast": "flash"})
        yield replace(sleeping(0.002), decision=decision)

    monkeypatch.setattr(command, "CASES", {"decide": Case("decide", "two naps", decide)})
    monkeypatch.setattr(dispatch, "FOLDER", tmp_path / "measured")
    command.main(["decide", "--device", "cpu", "--seconds", "0.02", "--save-choices"])
    assert str(tmp_path / "measured" / "cpu.json") in capsys.readouterr().out
    assert dispatch.choice("attention", CPU, "a key") == "flash"
    with pytest.raises(SystemExit):
        command.main(["decide", "--device", "cpu", "--quick", "--save-choices"])
    assert "leave out --quick" in capsys.readouterr().err
