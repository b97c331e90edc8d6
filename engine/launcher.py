"""What the launcher says of this process, whichever it is: DeepSpeed, torchrun, srun, a variable each, or none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from engine import slurm

NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class LauncherError(ValueError):
    """The environment describes several processes, but not wholly."""


@dataclass(frozen=True)
class Placement:
    """This process among those that were started together."""

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int
    """Processes on this host."""
    master_addr: str
    master_port: int

    def variables(self) -> dict[str, str]:
        """The environment that PyTorch and DeepSpeed read."""
        return {name.upper(): str(value) for name, value in vars(self).items()}


def placement(environment: Mapping[str, str]) -> Placement | None:
    """Where this process stands, or None where nothing says that there are others.

    RANK comes from DeepSpeed, torchrun, the PyTorchJob of Kubernetes or a person, and goes before SLURM's variables:
    torchrun may itself be started by srun.

    Raises LauncherError naming what is missing or wrong.
    """
    if "RANK" in environment:
        _refuse_stale_store(environment)
        said = dict(environment)
    elif slurm.in_step(environment):
        said = _of_slurm(environment)
    elif environment.get("WORLD_SIZE", "1") != "1" or ("MASTER_ADDR" in environment and not _in_job(environment)):
        said = dict(environment)
    else:
        return None
    missing = [name for name in NEEDED if not said.get(name)]
    if missing:
        there = ", ".join(f"{name}={said[name]}" for name in NEEDED if said.get(name))
        raise LauncherError(
            f"the environment has {there}, but not {', '.join(missing)}: start with torchrun, deepspeed or srun, set "
            f"all of {', '.join(NEEDED)}, or unset them for one process alone"
        )
    return _checked(said)


def _in_job(environment: Mapping[str, str]) -> bool:
    """Scripts of SLURM jobs set MASTER_ADDR for the steps to come."""
    return "SLURM_JOB_ID" in environment


def _refuse_stale_store(environment: Mapping[str, str]) -> None:
    """torchrun lets its processes meet in a store of its own that outlives them: those it starts again find addresses
    of the dead there, and wait for them (pytorch/pytorch#135712)."""
    restarts = environment.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"
    if restarts and environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        raise LauncherError(
            "torchrun --max-restarts would start processes again that find the addresses of dead ones: set "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun, and give it --standalone (one host) or "
            "--rdzv-backend c10d --rdzv-endpoint FIRST_HOST:PORT (several)"
        )


def _of_slurm(environment: Mapping[str, str]) -> dict[str, str]:
    try:
        said = slurm.described(environment)
    except KeyError as error:
        raise LauncherError(f"srun set SLURM_STEP_ID, but not {error.args[0]}: set RANK and the like") from error
    except ValueError as error:
        raise LauncherError(f"what srun says cannot be read ({error}): set RANK and the like") from error
    given = environment.get("WORLD_SIZE")
    if given and given != said["WORLD_SIZE"]:
        raise LauncherError(
            f"WORLD_SIZE is {given}, but srun started {said['WORLD_SIZE']} processes: unset it, or start as many"
        )
    return said


def _checked(said: Mapping[str, str]) -> Placement:
    world_size = _number(said, "WORLD_SIZE", 1)
    rank = _number(said, "RANK", 0, world_size - 1)
    # torchrun says LOCAL_WORLD_SIZE, DeepSpeed LOCAL_SIZE. Who says neither starts all processes on this host and
    # numbers them by LOCAL_RANK, or starts one a host.
    name = next((name for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE") if said.get(name)), None)
    local_world_size = _number(said, name, 1, world_size) if name else (world_size if said.get("LOCAL_RANK") else 1)
    if local_world_size > 1 and not said.get("LOCAL_RANK"):
        raise LauncherError(f"{name} is {local_world_size}, but LOCAL_RANK is missing: it numbers those of a host")
    local_rank = _number(said, "LOCAL_RANK", 0, local_world_size - 1) if said.get("LOCAL_RANK") else 0
    port = _number(said, "MASTER_PORT", 1, 65_535)
    return Placement(rank, local_rank, world_size, local_world_size, said["MASTER_ADDR"], port)


def _number(said: Mapping[str, str], name: str, least: int, most: int | None = None) -> int:
    text = said[name]
    if not text.isdecimal() or int(text) < least or (most is not None and int(text) > most):
        here = f"from {least} on" if most is None else f"from {least} to {most}"
        raise LauncherError(f"{name} is {text!r}, but must be a whole number {here}: see how the processes are started")
    return int(text)
