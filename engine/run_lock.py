"""One run a folder: RUN/.lock is locked (flock) while a process writes there."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from engine.telemetry import say

NAME = ".lock"
UNSUPPORTED = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}


class RunLockedError(ValueError):
    """Another process writes in the run's folder."""


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Holds the folder for one process: the first of a run. The system lets go when the process ends, however it does.

    The file says who: {"host", "pid", "started"}, and stays. Where the file system knows no flock, a line says so and
    the work goes on.

    Raises RunLockedError where another process, of whatever host, holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunLockedError(
                f"{folder} is in use by {_holder(file)}: give this run another folder with --run, or end that one first"
            ) from error
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            say(f"{path}: this file system has no flock ({error.strerror}); see to it that no other run writes there")
        # In place: a new file under the same name would carry another lock.
        file.truncate(0)
        started = datetime.now(UTC).isoformat(timespec="seconds")
        json.dump({"host": socket.gethostname(), "pid": os.getpid(), "started": started}, file)
        file.flush()
        yield


def _holder(file: IO[str]) -> str:
    file.seek(0)
    try:
        holder = json.load(file)
        return f"process {holder['pid']} on {holder['host']} since {holder['started']}"
    except (ValueError, KeyError, TypeError):  # it has the lock and has not yet written
        return "another process"
