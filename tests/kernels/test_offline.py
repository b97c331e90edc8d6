"""The machine code of every Triton kernel, compiled for GPUs that need not be here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
# Bytes of shared memory that a block can have without asking for more (CUDA C++ programming guide, table of
# technical specifications).
SHARED_BYTES = 48 * 1024


def compile_kernels(dtypes: str, capabilities: str) -> list[dict[str, Any]]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, Path(__file__).with_name("offline.py"), dtypes, capabilities]
    return json.loads(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


def check(kernels: list[dict[str, Any]]) -> None:
    for kernel in kernels:
        name = f"{kernel['kernel']} {kernel['map']} sm_{kernel['capability']}"
        instructions = kernel["instructions"]
        assert kernel["stack_bytes"] == kernel["local_bytes"] == 0, f"{name} spills registers"
        assert not any(instruction.startswith(("LDL", "STL")) for instruction in instructions), f"{name} spills"
        assert kernel["shared_bytes"] <= SHARED_BYTES, name
        assert kernel["registers"] * kernel["threads"] <= 65_536, f"{name} does not fit a multiprocessor"
        for movement in kernel["whole_vectors"]:
            assert instructions.get(f"{movement}.E.128", 0) > 0, f"{name}: {instructions}"


@pytest.mark.timeout(600)
def test_hopper_code_has_no_spills_and_moves_whole_vectors() -> None:
    kernels = compile_kernels("bf16", "90")
    assert {kernel["kernel"] for kernel in kernels} == {"group_norm forward", "group_norm backward", "noise"}
    check(kernels)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_code_for_other_gpus_and_dtypes() -> None:
    check(compile_kernels("fp32", "80,90,100") + compile_kernels("bf16", "80,100"))
