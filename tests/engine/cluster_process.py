"""What test_cluster.py starts several of: joins, sums the ranks, then steps and agrees until told or asked to stop.

    cluster_process.py FOLDER [steps] [fault] [its rank]      fault: kill, hang, raise or none, at step 5, first attempt

FOLDER/RANK.ATTEMPT.json says what the process saw, FOLDER/RANK.ATTEMPT.pid that it steps.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed

from engine import console, distributed
from engine.agreement import GO_ON, SAVE_AND_STOP, Agreement
from engine.stopping import Stop, Stopping


def misbehave(fault: str) -> None:
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "hang":
        os.kill(os.getpid(), signal.SIGSTOP)
    if fault == "raise":
        raise ValueError("this process has an error of its own")


def main() -> None:
    arguments = [argument for argument in sys.argv[1:] if not argument.startswith("--local_rank")]
    folder, steps, fault, victim = Path(arguments[0]), *(arguments[1:] + ["20", "none", "-1"][len(arguments) - 1 :])
    ranks = distributed.initialize()
    attempt = distributed.restarts(ranks)
    total = torch.tensor([ranks.rank])
    torch.distributed.all_reduce(total)
    ranks.wait()
    # A wait for the device that no error ends.
    blocked = os.environ.get("BLOCKED")
    agreed = []
    with Stopping() as stop, Agreement(ranks, timeout=timedelta(seconds=8)) as agreement:
        (folder / f"{ranks.rank}.{attempt}.pid").write_text(str(os.getpid()))
        for step in range(int(steps)):
            if step == 5 and attempt == 0:
                if ranks.rank == int(victim):
                    misbehave(fault)
                elif blocked:
                    time.sleep(1000)
            flag = SAVE_AND_STOP if stop.asked else GO_ON
            # Any flag may be sent; here the step with the rank in it shows that all see the same one.
            agreed.append(agreement.agree(10 * step + 10 + ranks.rank if int(steps) < 100 else flag))
            if agreed[-1] == SAVE_AND_STOP:
                break
            torch.distributed.all_reduce(total.clone())
            time.sleep(0.02)
    seen = {
        "rank": ranks.rank,
        "local_rank": int(os.environ["LOCAL_RANK"]),
        "world_size": ranks.world_size,
        "attempt": attempt,
        "threads": torch.get_num_threads(),
        "total": int(total),
        "agreed": agreed,
    }
    (folder / f"{ranks.rank}.{attempt}.json").write_text(json.dumps(seen))
    if agreed[-1] == SAVE_AND_STOP:
        raise Stop("stopped as asked")


if __name__ == "__main__":
    console.guard("train", main)
