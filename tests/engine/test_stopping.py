"""Signals that ask to stop, and what the process leaves with."""

from __future__ import annotations

import os
import signal

import pytest

from engine import console, stopping
from engine.agreement import GO_ON, SAVE_AND_STOP, Agreement, RankLostError
from engine.distributed import alone, default_device
from engine.stopping import RESUME, Stop, Stopping


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_asks_and_ends_nothing(number: signal.Signals) -> None:
    with Stopping() as stop:
        assert stop.asked is None
        os.kill(os.getpid(), number)
        assert stop.asked == number.name
        os.kill(os.getpid(), signal.SIGUSR1)
    os.kill(os.getpid(), number)  # an echo, while the process leaves


def test_a_run_that_was_not_asked_leaves_signals_as_they_were() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Stopping():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_second_termination_ends_at_once_unless_it_echoes_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    with Stopping() as stop:
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)  # time is up, while it saves
        os.kill(os.getpid(), signal.SIGTERM)  # the launcher passes on what it got itself
        assert stop.asked == "SIGUSR1"
        monkeypatch.setattr(stopping, "ECHO_SECONDS", -1.0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("error", [Stop("stopped as asked"), RankLostError("lost another")])
def test_a_run_that_can_go_on_leaves_with_a_status_of_its_own(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> None:
        raise error

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as left:
        console.guard("train", work)
    signal.signal(signal.SIGTERM, before)
    assert left.value.code == RESUME == os.EX_TEMPFAIL
    assert capsys.readouterr().err == f"train: {error}\n"


def test_one_process_agrees_with_its_own_last_flag() -> None:
    with Agreement(alone(default_device())) as agreement:
        flags = (GO_ON, SAVE_AND_STOP, GO_ON, 2)
        assert [agreement.agree(flag) for flag in flags] == [GO_ON, GO_ON, SAVE_AND_STOP, GO_ON]
