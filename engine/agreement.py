"""What all processes decide together, once a step, and whether they are all still there.

Both go over gloo groups of CPU tensors: the device is never waited for.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from datetime import timedelta
from types import TracebackType

import torch
import torch.distributed

from engine.distributed import PATIENCE, Ranks
from engine.stopping import RESUME, ResumeError

GO_ON = 0
SAVE_AND_STOP = 1

BEAT_SECONDS = 1.0
LEAVE_SECONDS = 10.0
"""After a loss the process has this long to end by itself: it may be caught in a wait on the device."""


class RankLostError(ResumeError):
    """Another process has died, hangs, or its host is out of reach."""


class Agreement:
    """A flag that all processes see alike at the same step, and a watch over the processes.

    The watch is a thread that meets the others' every second, so that it finds a process that died at once, and one
    that hangs (or whose host fell silent) after `timeout`, however long a step, a compilation or a checkpoint takes.
    The main thread then gets RankLostError from `agree`, or instead of the error of another collective on leaving the
    block; a main thread that is caught elsewhere is ended with its process, status RESUME.

        with Agreement(ranks) as agreement:
            while ...:
                if agreement.agree(SAVE_AND_STOP if stopping.asked else GO_ON) == SAVE_AND_STOP:

    All processes construct it, and call it, alike. One process alone has neither groups nor a thread.
    """

    def __init__(self, ranks: Ranks, timeout: timedelta = timedelta(seconds=60)) -> None:
        """timeout: for how long the thread of another process may be silent."""
        self._ranks = ranks
        self._timeout = timeout
        self._flag = torch.tensor([GO_ON], dtype=torch.int32)
        self._work: torch.distributed.Work | None = None
        self._loss = ""
        self._lost = threading.Event()
        self._leaving = threading.Event()
        self._abandoned = threading.Event()
        if ranks.world_size > 1:
            self._flags = torch.distributed.new_group(backend="gloo", timeout=PATIENCE)
            self._beats = torch.distributed.new_group(backend="gloo", timeout=PATIENCE)
            self._thread = threading.Thread(target=self._watch, name="watch over the processes", daemon=True)

    def __enter__(self) -> Agreement:
        if self._ranks.world_size > 1:
            self._thread.start()
        return self

    def agree(self, flag: int) -> int:
        """The largest flag that any process gave at its previous call (GO_ON at the first), and sends this one.

        Raises RankLostError.
        """
        agreed = self._previous()
        self._flag = torch.tensor([flag], dtype=torch.int32)
        if self._ranks.world_size > 1:
            self._work = torch.distributed.all_reduce(
                self._flag, torch.distributed.ReduceOp.MAX, self._flags, async_op=True
            )
        return agreed

    def _previous(self) -> int:
        if self._lost.is_set():
            raise self._error()
        while (work := self._work) is not None:
            try:
                work.wait(timedelta(seconds=BEAT_SECONDS))
            except RuntimeError as error:
                if work.is_completed():
                    self._loss = self._loss or str(error)
                    raise self._error() from error
                if self._lost.is_set():  # a process hangs, and would be waited for
                    raise self._error() from error
            else:
                self._work = None
        return int(self._flag)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._ranks.world_size == 1:
            return
        if error is None:
            self._previous()
            self._leaving.set()
            self._thread.join()
            if self._lost.is_set():
                raise self._error()
            return
        if isinstance(error, RankLostError):
            return  # the watch goes on: where leaving waits for a device that waits for the lost, it ends the process
        # A collective may fail seconds before the watch knows why: each notices when its own neighbours are gone.
        if _of_collective(error) and self._lost.wait(LEAVE_SECONDS):
            raise self._error() from error
        self._abandoned.set()

    def _error(self) -> RankLostError:
        return RankLostError(
            f"process {self._ranks.rank} of {self._ranks.world_size} ({socket.gethostname()}) has lost another one "
            f"({self._loss}): it died, hangs, or its host is out of reach; what it said itself says why. "
            "`torchrun --max-restarts` starts all again; without it, the same command goes on from the last checkpoint"
        )

    def _watch(self) -> None:
        leaves = 0
        while not leaves:
            leaves = int(self._leaving.wait(BEAT_SECONDS))
            beat = torch.tensor([leaves], dtype=torch.int32)
            options = torch.distributed.AllreduceOptions()
            options.reduceOp = torch.distributed.ReduceOp(torch.distributed.ReduceOp.MIN)  # all leave at the same beat
            options.timeout = self._timeout
            try:
                work = self._beats.allreduce([beat], options)
                # Not wait(): the interpreter could not end while a thread is in it.
                while not work.is_completed():
                    if self._abandoned.wait(0.02):
                        return
                work.wait()
            except RuntimeError as error:
                if self._abandoned.is_set():
                    return
                self._loss = self._loss or str(error)
                self._lost.set()
                # The main thread ends the process, or else this one does.
                time.sleep(LEAVE_SECONDS)
                print(self._error(), file=sys.stderr, flush=True)
                os._exit(RESUME)
            leaves = int(beat)


def _of_collective(error: BaseException) -> bool:
    return isinstance(error, torch.distributed.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
