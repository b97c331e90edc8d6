"""Measured choices between backends, a file a device: kernels/measured/<device>.json.

`python -m benchmarks group_norm attention --save-choices` measures the backends on a machine and writes its file. A
choice that was never measured is None, and the operation goes by its own rule.
"""

from __future__ import annotations

import functools
import json
import os
import re
from pathlib import Path

import torch

FOLDER = Path(__file__).parent / "measured"


@torch.compiler.assume_constant_result  # a look-up in a file is nothing for dynamo to trace
def choice(operation: str, device: torch.device, key: str) -> str | None:
    """The backend that was fastest for `operation` at `key` on this kind of device, None where none was measured."""
    return _choices(_path(device)).get(operation, {}).get(key)


def save_choices(device: torch.device, choices: dict[str, dict[str, str]]) -> Path:
    """Adds {operation: {key: backend}} to what was measured on this kind of device; returns the file."""
    path = _path(device)
    known = _choices(path)
    merged = {name: known.get(name, {}) | choices.get(name, {}) for name in sorted(known | choices)}
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(merged, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    temporary.replace(path)
    _choices.cache_clear()
    return path


def _path(device: torch.device) -> Path:
    return FOLDER / f"{_slug(device)}.json"


@functools.cache
def _slug(device: torch.device) -> str:
    """`nvidia-h200` for a GPU; processors are not told apart."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


@functools.cache
def _choices(path: Path) -> dict[str, dict[str, str]]:
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); remove it, or measure it anew") from error
