"""`python -m benchmarks [names]`: measures cases against their peers, in turns, in one run."""

from __future__ import annotations

import difflib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from benchmarks.cases import CASES
from benchmarks.comparison import Case
from benchmarks.run import run
from engine.distributed import default_device
from engine.telemetry import errors, say
from kernels.dispatch import save_choices


class BenchmarkError(ValueError):
    """A command line that cannot be carried out; the message names what can."""


@dataclass(frozen=True)
class Arguments:
    """Measure cases against their peers: in turns, after warm-up, beside the limits of the machine."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Cases to run, as --list names them. None: all of them."""
    list: bool = False
    """Name the cases and do nothing else."""
    quick: bool = False
    """Few and small shapes, and a tenth of the time: does everything run?"""
    device: str = str(default_device())
    """cpu, cuda, or one of several GPUs, as in cuda:1."""
    seconds: float = 2.0
    """Time for each peer of each comparison. Every peer takes at least one sample, however long."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE.json")] = None
    """Write machine, versions, commit and every figure there; anew after each comparison."""
    save_choices: bool = False
    """Make the fastest backends of group norm and attention those that `auto` takes on this kind of device."""


def main(arguments: list[str] | None = None) -> None:
    """The command; a user's error ends in one clear line."""
    parsed = tyro.cli(
        Arguments,
        prog="python -m benchmarks",
        args=sys.argv[1:] if arguments is None else arguments,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    if parsed.list:
        for case in CASES.values():
            say(f"{case.name:15}{case.description}")
        return
    try:
        if parsed.save_choices and parsed.quick:
            raise BenchmarkError("--save-choices needs figures at full size: leave out --quick")
        cases, device = choose(parsed.names), _device(parsed.device)
        report = run(cases, device, parsed.quick, parsed.seconds / 10 if parsed.quick else parsed.seconds, parsed.out)
        if parsed.save_choices:
            say(f"Choices of backends: {save_choices(device, report['choices'])}")
    except KeyboardInterrupt:
        kept = f"; what was measured is in {parsed.out}" if parsed.out and parsed.out.exists() else ""
        errors.print(f"benchmarks: interrupted{kept}", markup=False)
        raise SystemExit(130) from None
    except (ValueError, OSError) as error:
        errors.print(f"benchmarks: {error}", markup=False)
        raise SystemExit(2) from None
    if parsed.out:
        say(f"All figures: {parsed.out.resolve()}")
    else:
        say("Nothing is kept: --out FILE.json writes all figures.")


def choose(names: tuple[str, ...]) -> list[Case]:
    """The cases of these names, in this order; all of them for none. BenchmarkError for a name that is not there."""
    for name in names:
        if name not in CASES:
            nearest = difflib.get_close_matches(name, CASES, n=1, cutoff=0.4)
            hint = f"did you mean {nearest[0]}? " if nearest else ""
            raise BenchmarkError(f"there is no case {name}; {hint}The cases: {', '.join(CASES)}")
    return [CASES[name] for name in dict.fromkeys(names or CASES)]


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise BenchmarkError(f"--device {name} is no device: give cpu, cuda or cuda:1") from error
    count = torch.cuda.device_count()
    if device.type not in ("cpu", "cuda"):
        raise BenchmarkError(f"--device {name} cannot be measured: give cpu or cuda")
    if device.type == "cuda" and (device.index or 0) >= count:
        raise BenchmarkError(f"--device {name} is not there: this machine has {count} CUDA devices")
    return device


if __name__ == "__main__":
    main()
