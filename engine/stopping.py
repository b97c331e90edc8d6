"""Being asked to stop: a signal that the training loop reads once a step, and the status that says `start me again`."""

from __future__ import annotations

import signal
import time
from types import FrameType
from typing import Any

RESUME = 75
"""Exit status (EX_TEMPFAIL of sysexits.h): nothing is wrong with the command; the same one goes on."""

ECHO_SECONDS = 5.0


class ResumeError(Exception):
    """The run has not come to its end, and the same command goes on: the process leaves with the status RESUME."""


class Stop(ResumeError):  # noqa: N818 - asked for, and no error
    """The run was asked to stop and has saved."""


class Stopping:
    """While it is entered, SIGTERM and SIGUSR1 ask for save-and-stop instead of ending the process.

    SIGUSR1 is the usual notice before a job's time is up (`sbatch --signal=USR1@120`). A second SIGTERM raises
    KeyboardInterrupt at once; within ECHO_SECONDS of the first it is taken for the same one, since `scancel` signals
    the launcher and its processes, and the launcher passes it on.
    """

    def __init__(self) -> None:
        self.asked: str | None = None
        """Name of the first signal that came."""
        self._terminated: float | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Stopping:
        self._before = {number: signal.signal(number, self._heard) for number in (signal.SIGTERM, signal.SIGUSR1)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            # An echo of what was asked must not change the status of leaving.
            signal.signal(number, signal.SIG_IGN if self.asked else handler)

    def _heard(self, number: int, _: FrameType | None) -> None:
        self.asked = self.asked or signal.Signals(number).name
        if number != signal.SIGTERM:
            return
        now = time.monotonic()
        if self._terminated is None:
            self._terminated = now
        elif now - self._terminated > ECHO_SECONDS:
            raise KeyboardInterrupt
