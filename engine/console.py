"""Command lines: `sgdm <program> [recipe] [--field value ...]`, and the same for engine/<program>.py alone.

A program may have actions: flags that run something else than its stage with the same configuration.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
import torch.distributed
import tyro

import kernels
from engine.config import Config, load_config
from engine.config_error import ConfigError
from engine.points import PROTOCOLS
from engine.recipes import RECIPES
from engine.stopping import RESUME, ResumeError
from engine.telemetry import errors, say

PROGRAMS = {
    "prepare": "Images from a source into train.beton (FFCV), with a manifest.",
    "annotate": "Features of the prepared images, without any label, and their clusters.",
    "train": "Train the guided network. On several GPUs: deepspeed engine/train.py [recipe] [--field value ...]",
    "ema": "Averages of the weights of any length, made after training of its snapshots: give --length.",
    "sample": "Draw images with averaged weights at every guidance scale.",
    "evaluate": "Compare the samples with real images; write metrics.json and report.html.",
    "scenes": "Write images whose truth is known exactly, as folders of the COCO and the Pascal VOC format.",
    "plan": "Predict memory, communication and speed of training a recipe on many GPUs, for every ZeRO stage.",
    "top": "All runs under a folder, live: state, progress, speed, loss, use of the device, time left.",
    "info": "Versions, devices, usable kernels and attention backends, and why the others are not.",
}

OF_A_RUN = ("ema", "sample", "evaluate")
"""What needs a run that was trained."""

MODULES = {"ema": "posthoc"}
"""Of engine/, where it is not called like the program."""


class Action(NamedTuple):
    program: str
    module: str
    """Its function `run` takes the configuration."""
    purpose: str


ACTIONS = {
    "--suggest": Action("annotate", "engine.suggestion", "how many clusters its images have room for, and why"),
    "--inspect": Action("annotate", "engine.inspection", "what it found, drawn over the images: a page in RUN/inspect"),
}

USAGE = """[recipe | --config FILE] [--field value ...]

recipe         one of: {recipes}
--config FILE  the config.yaml of an earlier run instead of a recipe
               Without either: what the run of --run was trained with, or, where there is none, quickstart.
--protocol     how samples are measured, in one word: {protocols}; single fields override it"""


def parse(program: str, arguments: list[str]) -> Config:
    """The configuration that a command line asks for: a recipe or a config.yaml, then single fields.

    Raises ConfigError for what is not a recipe; tyro itself refuses unknown options with the nearest names and exits.
    """
    # The DeepSpeed launcher adds --local_rank=N; the same number is in the environment.
    arguments = [argument for argument in arguments if not argument.startswith("--local_rank")]
    protocol, arguments = _take_protocol(arguments)
    default, rest = _starting_point(program, arguments)
    for path, value in protocol.items():
        part, _, name = path.partition(".")
        default = dataclasses.replace(default, **{part: dataclasses.replace(getattr(default, part), **{name: value})})
    for derived, ruler in (("image-size", "data.image-size"), ("num-clusters", "annotation.num-clusters")):
        if any(argument.split("=")[0].replace("_", "-") == f"--model.{derived}" for argument in rest):
            raise ConfigError(f"--model.{derived} follows --{ruler}: set that one")
    return tyro.cli(
        Config,
        prog=f"sgdm {program}",
        description=PROGRAMS[program] + "\n\n" + _usage(program),
        default=default,
        args=rest,
    )


def _usage(program: str) -> str:
    lines = [f"{flag:14} {action.purpose}" for flag, action in ACTIONS.items() if action.program == program]
    return "\n".join([USAGE.format(recipes=", ".join(RECIPES), protocols=", ".join(PROTOCOLS)), *lines])


def _take_protocol(arguments: list[str]) -> tuple[dict[str, Any], list[str]]:
    """The fields that --protocol fixes, and the other arguments."""
    rest, name = [], "custom"
    given = iter(arguments)
    for argument in given:
        flag, equals, value = argument.partition("=")
        if flag != "--protocol":
            rest.append(argument)
            continue
        name = value if equals else next(given, "")
        if name not in PROTOCOLS:
            raise ConfigError(f"there is no protocol {name or 'without a name'}; there are {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name], rest


def _run_of(arguments: list[str]) -> Path | None:
    """The folder that --run names."""
    for number, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag == "--run":
            return Path(value if equals else "".join(arguments[number + 1 : number + 2]))
    return None


def _starting_point(program: str, arguments: list[str]) -> tuple[Config, list[str]]:
    if arguments and arguments[0].split("=")[0] == "--config":
        _, _, value = arguments[0].partition("=")
        rest = arguments[1:] if value else arguments[2:]
        path = value or (arguments[1] if len(arguments) > 1 else "")
        if not path:
            raise ConfigError("--config needs a file: give the config.yaml of a run folder")
        return load_config(Path(path)), rest
    if arguments and not arguments[0].startswith("-"):
        name = arguments[0]
        if name not in RECIPES:
            nearest = difflib.get_close_matches(name, RECIPES, n=3, cutoff=0.4) or list(RECIPES)
            raise ConfigError(f"there is no recipe {name}; nearest: {', '.join(nearest)}")
        return RECIPES[name](), arguments[1:]
    run = _run_of(arguments)
    if run is not None and (saved := _saved_config(run)) is not None:
        return load_config(saved), arguments
    if run is not None and program in OF_A_RUN:
        raise ConfigError(f"{run} is no run: give the folder of one, or a recipe before the options")
    return RECIPES["quickstart"](), arguments


def _saved_config(run: Path) -> Path | None:
    """What a run was trained with, or, before its first checkpoint, prepared or annotated with. What it was sampled or
    evaluated with is another command's."""
    folders = [path for path in (run / "checkpoints").glob("*") if path.name.isdigit()]
    newest = max(folders, key=lambda path: int(path.name), default=run)
    return next((path for path in (newest / "config.yaml", run / "config.yaml") if path.is_file()), None)


def run_program(program: str, run: Callable[[Config], None], arguments: list[str] | None = None) -> None:
    """Parses and runs a stage of a run, or the action that is asked for in its place."""

    def work() -> None:
        action, rest = split_action(program, sys.argv[1:] if arguments is None else arguments)
        config = parse(program, rest)
        if action is None:
            run(config)
        else:
            importlib.import_module(action.module).run(config)

    guard(program, work)


def split_action(program: str, arguments: list[str]) -> tuple[Action | None, list[str]]:
    """The action that a command line asks for, if any, and its arguments without the flag.

    Raises ConfigError for an action of another program, and for several.
    """
    asked = [flag for flag in ACTIONS if flag in arguments]
    for flag in asked:
        if ACTIONS[flag].program != program:
            raise ConfigError(f"{flag} is not for {program}: give it to {ACTIONS[flag].program}")
    if len(asked) > 1:
        raise ConfigError(f"{' and '.join(asked)} cannot be done at once: give one of them")
    return (ACTIONS[asked[0]] if asked else None), [argument for argument in arguments if argument not in ACTIONS]


def guard(program: str, work: Callable[[], None]) -> None:
    """A user's error ends in one clear line, Ctrl-C (the launcher's SIGTERM) in a way to go on."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _refuse_foreign_packages()
        work()
    except KeyboardInterrupt:
        for again in (signal.SIGINT, signal.SIGTERM):
            signal.signal(again, signal.SIG_IGN)
        _fail(f"{program}: interrupted; the same command goes on from the last whole point", 130)
    except ResumeError as error:
        _fail(f"{program}: {error}", RESUME)
    except torch.OutOfMemoryError as error:
        _fail(
            f"{program}: out of memory ({error}): raise training.accumulation, or lower training.batch_size, "
            "sampling.batch_size, annotation.batch_size or evaluation.batch_size; for training also "
            "training.activation_checkpointing, training.zero_stage, training.offload_optimizer and "
            "training.offload_parameters",
            2,
        )
    except (ValueError, OSError) as error:
        if os.environ.get("SGDM_TRACEBACK"):
            raise
        _fail(f"{program}: {error}\n(SGDM_TRACEBACK=1 shows where)", 2)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _fail(message: str, status: int) -> NoReturn:
    errors.print(message, markup=False)
    raise SystemExit(status)


def _refuse_foreign_packages() -> None:
    """Other packages are called `kernels` and `engine` too; ours stand side by side."""
    house = Path(__file__).resolve().parent.parent
    found = Path(str(kernels.__file__)).resolve().parent
    if found != house / "kernels":
        raise ConfigError(
            f"the package `kernels` is taken by {found}, ours is {house / 'kernels'}: "
            "uninstall the other one or use an environment of its own, as `make quickstart` does"
        )


def main() -> None:
    """The `sgdm` command."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        say("usage: sgdm <program> [recipe] [--field value ...]\n")
        for name, purpose in PROGRAMS.items():
            say(f"  {name:9} {purpose}")
        say("\n`sgdm <program> --help` lists every option with its default, unit and meaning.")
        return
    program, rest = arguments[0], arguments[1:]
    if program not in PROGRAMS:
        nearest = difflib.get_close_matches(program, PROGRAMS, n=3, cutoff=0.4) or list(PROGRAMS)
        _fail(f"sgdm: there is no program {program}; nearest: {', '.join(nearest)}", 2)
    module = importlib.import_module(f"engine.{MODULES.get(program, program)}")
    if program == "info":
        module.main()
    elif program in ("scenes", "plan", "top"):
        module.main(rest)
    else:
        run_program(program, module.run, rest)


if __name__ == "__main__":
    main()
