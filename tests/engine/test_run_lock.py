"""One run a folder."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from engine.run_lock import RunLockedError, run_lock

HOLD = """
import sys, time
from pathlib import Path
from engine.run_lock import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(100)
"""


def test_a_second_run_is_refused_by_name_until_the_first_has_ended(tmp_path: Path) -> None:
    with run_lock(tmp_path / "run"):
        holder = json.loads((tmp_path / "run" / ".lock").read_text())
        assert holder["host"] == socket.gethostname() and holder["pid"] == os.getpid()
        said = f"in use by process {os.getpid()} on {socket.gethostname()} since {holder['started']}".replace(
            "+", r"\+"
        )
        with pytest.raises(RunLockedError, match=f"{said}: give this run another folder with --run, or end"):
            run_lock(tmp_path / "run").__enter__()
        with run_lock(tmp_path / "other"):
            pass
    with run_lock(tmp_path / "run"):
        pass


def test_the_lock_of_a_killed_process_is_no_obstacle(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], cwd=root, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    with pytest.raises(RunLockedError, match=f"process {process.pid} on "):
        run_lock(tmp_path).__enter__()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert json.loads((tmp_path / ".lock").read_text())["pid"] == process.pid
    with run_lock(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()


def test_a_holder_that_has_not_written_yet(tmp_path: Path) -> None:
    with (tmp_path / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(RunLockedError, match="in use by another process"):
            run_lock(tmp_path).__enter__()


def test_a_file_system_without_flock_is_said_and_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with run_lock(tmp_path):
        pass
    assert "has no flock (Function not implemented); see to it that no other run" in capsys.readouterr().out
