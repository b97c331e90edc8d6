from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import deepspeed
import pytest
import torch

from engine import distributed
from engine.collectives import COLLECTIVES, timed_collectives
from engine.meters import Meters

CPU = torch.device("cpu")


def spent(meters: Meters) -> float:
    """Milliseconds of communication since the last call."""
    meters.step(torch.tensor(1.0), torch.tensor(False))
    return float(meters.read()["step_ms"]["communication"])


def test_what_deepspeed_issues_is_measured_and_no_longer_once_it_ends() -> None:
    ranks = distributed.initialize()
    meters, values = Meters(CPU), torch.arange(2.0**20, device=ranks.device)
    with timed_collectives(meters):
        deepspeed.comm.all_reduce(values)
        assert spent(meters) > 0
        assert spent(meters) == 0
        gathered = torch.empty_like(values)
        handle = deepspeed.comm.all_gather_into_tensor(gathered, values, async_op=True)
        handle.wait()
        assert handle.is_completed() and torch.equal(gathered, values)
        assert spent(meters) > 0
    deepspeed.comm.all_reduce(values)
    assert spent(meters) == 0
    assert not set(COLLECTIVES) & set(vars(deepspeed.comm.comm.cdb))


LATE = """
import sys, time
from pathlib import Path
import deepspeed, torch
from engine import distributed
from engine.collectives import timed_collectives
from engine.meters import Meters

ranks = distributed.initialize()
meters, value = Meters(ranks.device), torch.ones(10)
deepspeed.comm.all_reduce(value)
with timed_collectives(meters):
    if ranks.rank == 1:
        time.sleep(0.3)
    deepspeed.comm.all_reduce(value)
assert value.eq(4).all()
meters.step(torch.tensor(1.0), torch.tensor(False))
Path(sys.argv[1], str(ranks.rank)).write_text(str(meters.read()["step_ms"]["communication"]))
"""


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="by the wall clock, on CPUs")
def test_waiting_for_a_late_process_is_communication(tmp_path: Path) -> None:
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(distributed._free_port())}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", LATE, str(tmp_path)],
            env={**os.environ, **group, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    assert [process.wait() for process in processes] == [0, 0]
    early, late = (float((tmp_path / str(rank)).read_text()) for rank in range(2))
    assert early > 250 and late < 150
