"""What SLURM says of a process: the environment of a job, of an srun step, and its list of hosts."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping

# Names with bracketed numbers in between; commas between brackets are not commas between names.
_NAME = re.compile(r"(?:[^\s,\[\]]|\[[^\[\]]*\])+")
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")


def hosts(nodelist: str) -> list[str]:
    """The hosts of a SLURM_JOB_NODELIST, in its order: `node[01-03,07],other5`, also `rack[1-2]node[01-40]`.

    Raises ValueError for what is no such list.
    """
    names = _NAME.findall(nodelist)
    if not names or ",".join(names) != nodelist:
        raise ValueError(f"{nodelist!r} is no list of hosts like node[01-03,07],other5")
    return [host for name in names for host in _expanded(name)]


def _expanded(name: str) -> Iterator[str]:
    # Odd parts are what brackets enclosed.
    parts = [
        list(_numbers(part)) if place % 2 else [part] for place, part in enumerate(re.split(r"\[([^\[\]]*)\]", name))
    ]
    return map("".join, itertools.product(*parts))


def _numbers(ranges: str) -> Iterator[str]:
    for part in ranges.split(","):
        found = _RANGE.fullmatch(part)
        if found is None:
            raise ValueError(f"[{ranges}] is no list of numbers like [01-03,07] in a list of hosts")
        first, last = found[1], found[2] or found[1]
        yield from (f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1))


def in_step(environment: Mapping[str, str]) -> bool:
    """Whether srun started this process as one of several.

    The variables of a job alone are in every shell of it: SLURM_NTASKS in a batch script, or after salloc, is what a
    step would have, and SLURM_PROCID is 0 in the script. A step's own variables are SLURM_STEP_*.
    """
    return "SLURM_STEP_ID" in environment and tasks(environment) > 1


def tasks(environment: Mapping[str, str]) -> int:
    """Processes of the step."""
    return int(environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS") or "1")


def described(environment: Mapping[str, str]) -> dict[str, str]:
    """PyTorch's variables for a process of an srun step. MASTER_ADDR and MASTER_PORT are kept where they are set.

    Raises KeyError for a variable that is missing, ValueError for one that cannot be read.
    """
    nodelist = environment.get("SLURM_STEP_NODELIST") or environment["SLURM_JOB_NODELIST"]
    # Below 32,768, where the system's own ports begin; another one for every step that runs at a time.
    port = 20_000 + (int(environment["SLURM_JOB_ID"]) * 10 + int(environment["SLURM_STEP_ID"])) % 10_000
    return {
        "RANK": environment["SLURM_PROCID"],
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "WORLD_SIZE": str(tasks(environment)),
        "LOCAL_WORLD_SIZE": str(_on_this_node(environment)),
        "MASTER_ADDR": environment.get("MASTER_ADDR") or hosts(nodelist)[0],
        "MASTER_PORT": environment.get("MASTER_PORT") or str(port),
    }


def _on_this_node(environment: Mapping[str, str]) -> int:
    """Processes of the step on this node: SLURM_STEP_TASKS_PER_NODE is like `2(x3),1`."""
    counts = environment.get("SLURM_STEP_TASKS_PER_NODE", "")
    if counts and "SLURM_NODEID" in environment:
        each = [
            int(number)
            for number, _, times in re.findall(r"(\d+)(\(x(\d+)\))?", counts)
            for _ in range(int(times or 1))
        ]
        return each[int(environment["SLURM_NODEID"])]
    return int(environment.get("SLURM_NTASKS_PER_NODE") or tasks(environment))
