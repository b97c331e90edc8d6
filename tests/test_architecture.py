"""The house rules, read from the syntax tree of every file: imports point down, the method is a library, no pickles."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "kernels": {"kernels"},
    "sgdm": {"sgdm", "kernels"},
    "engine": {"engine", "sgdm", "kernels"},
    "benchmarks": {"benchmarks", "engine", "sgdm", "kernels"},
}
FLOORS = set(MAY_IMPORT)
UNPICKLERS = {"pickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
SAFE = {"pickle", "pickle.UnpicklingError"}  # an error that torch.load(weights_only=True) raises too


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imported(tree: ast.AST) -> Iterator[str]:
    """Full dotted names of everything imported, wherever in the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{name.name}" for name in node.names)


def names_in(tree: ast.AST) -> set[str]:
    """Dotted names that are imported or used."""
    used = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return used | set(imported(tree))


def calls(tree: ast.AST) -> Iterator[tuple[str, dict[str, object]]]:
    """Dotted name and constant keyword arguments of every call."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            constants = {k.arg: k.value.value for k in node.keywords if k.arg and isinstance(k.value, ast.Constant)}
            yield ast.unparse(node.func), constants


def import_violations(floor: str, source: str) -> list[str]:
    roots = {name.split(".")[0] for name in imported(ast.parse(source))}
    return sorted((roots & FLOORS) - MAY_IMPORT[floor])


def library_violations(source: str) -> list[str]:
    """What the method must not know of: the distribution engine, the environment, the command line."""
    tree = ast.parse(source)
    forbidden = {"deepspeed", "torch.distributed", "argparse", "tyro", "os.environ", "os.getenv", "sys.argv"}
    return sorted(rule for rule in forbidden if any(f"{name}.".startswith(f"{rule}.") for name in names_in(tree)))


def pickle_violations(source: str) -> list[str]:
    tree = ast.parse(source)
    found = sorted(name for name in names_in(tree) - SAFE if name.split(".")[0] in UNPICKLERS)
    for name, arguments in calls(tree):
        if name == "torch.load" and arguments.get("weights_only") is not True:
            found.append("torch.load without weights_only=True")
        if arguments.get("allow_pickle") is True:
            found.append(f"{name} with allow_pickle=True")
    return found


FILES = [(floor, path) for floor in MAY_IMPORT for path in sources(floor)]
names = [str(path.relative_to(ROOT)) for _, path in FILES]


@pytest.mark.parametrize(("floor", "path"), FILES, ids=names)
def test_imports_point_down(floor: str, path: Path) -> None:
    assert import_violations(floor, path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", [path for floor in ("kernels", "sgdm") for path in sources(floor)], ids=str)
def test_the_method_is_a_library(path: Path) -> None:
    assert library_violations(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", [path for _, path in FILES], ids=names)
def test_nothing_pickled_is_loaded(path: Path) -> None:
    assert pickle_violations(path.read_text(encoding="utf-8")) == []


def test_the_rules_can_fail() -> None:
    assert import_violations("kernels", "from sgdm.models import unet") == ["sgdm"]
    assert import_violations("sgdm", "def f():\n    import engine.trainer") == ["engine"]
    assert import_violations("engine", "import sgdm, kernels.ema, torch") == []
    assert library_violations("import os\nos.environ['HOME']") == ["os.environ"]
    assert library_violations("from os import environ") == ["os.environ"]
    assert library_violations("import torch.distributed as dist") == ["torch.distributed"]
    assert pickle_violations("import pickle\npickle.load(file)") == ["pickle.load"]
    assert pickle_violations("from pickle import Unpickler") == ["pickle.Unpickler"]
    assert pickle_violations("import pickle\npickle.UnpicklingError") == []
    assert pickle_violations("torch.load(path)") == ["torch.load without weights_only=True"]
    assert pickle_violations("torch.load(path, weights_only=True)") == []
    assert pickle_violations("np.load(path, allow_pickle=True)") == ["np.load with allow_pickle=True"]
