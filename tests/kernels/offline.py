"""Compiles every Triton kernel for GPUs that are not here and prints what came of it as JSON.

    python tests/kernels/offline.py bf16,fp32 80,90,100

A process of its own: what runs in Triton's interpreter cannot be compiled.
"""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels import group_norm_triton, noise_triton

# Channels, groups, pixels: of the paper's network at 64 px and 32 px, ADM's, and what fits no power of two.
MAPS = (
    (128, 32, 4096),
    (256, 32, 4096),
    (256, 32, 1024),
    (512, 32, 256),
    (1024, 32, 64),
    (192, 32, 4096),
    (960, 32, 64),
    (320, 8, 1024),
    (640, 1, 35),
    (40, 40, 35),
    (12, 3, 35),
)
# Values of an image: of 64 px and of 32 px, and what fills no vectors.
IMAGES = (3 * 64 * 64, 3 * 32 * 32, 3 * 5 * 7)
POINTERS = {"x", "y", "dx", "dy", "scale", "shift"}
FLOATS = {"eps"}
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def compile_group_norm(direction: str, C: int, groups: int, pixels: int, dtype: str, capability: int) -> dict[str, Any]:
    kernel = getattr(group_norm_triton, f"{direction}_kernel")
    tile = group_norm_triton.choose_tile(C, C // groups, pixels, {"bf16": 2, "fp16": 2, "fp32": 4}[dtype])
    constants = {
        "C": C,
        "pixels": pixels,
        "group_channels": C // groups,
        "program_channels": tile.program_channels,
        "tile_channels": tile.channels,
        "tile_pixels": tile.pixels,
        "in_registers": tile.in_registers,
        "has_scale": True,
        "silu": True,
    }
    signature = {}
    for name in kernel.arg_names:
        if name in POINTERS:
            signature[name] = f"*{dtype}"
        elif name.endswith("stride"):
            signature[name] = "i32"
        else:
            signature[name] = "fp32" if name in FLOATS else "*fp32"
    num_warps = tile.num_warps(getattr(group_norm_triton, f"VALUES_PER_THREAD_{direction.upper()}"))
    return {
        "kernel": f"group_norm {direction}",
        "map": f"C{C} groups{groups} pixels{pixels} {dtype}",
        "whole_vectors": ["LDG", "STG"] if C * (4 if dtype == "fp32" else 2) % 16 == 0 else [],
        **compile_kernel(kernel, signature, constants, num_warps, capability),
    }


def compile_noise(values: int, capability: int) -> dict[str, Any]:
    kernel = noise_triton.noise_kernel
    signature = {"positions": "*i64", "normal": "*fp32", "uniform": "*fp32", "seed": "i64", "B": "i32"}
    return {
        "kernel": "noise",
        "map": f"{values} values",
        "whole_vectors": ["STG"] if values % 16 == 0 else [],
        **compile_kernel(
            kernel, signature, {"values": values, "tile": noise_triton.TILE}, noise_triton.WARPS, capability
        ),
    }


def compile_kernel(
    kernel: Any, signature: dict[str, str], constants: dict[str, Any], num_warps: int, capability: int
) -> dict[str, Any]:
    """The resources and memory instructions of one kernel; its pointers and strides are multiples of 16."""
    aligned = {
        (position,): [["tt.divisibility", 16]]
        for position, name in enumerate(kernel.arg_names)
        if name not in constants and (signature[name].startswith("*") or name.endswith("stride"))
    }
    source = ASTSource(
        fn=kernel,
        signature={name: "constexpr" if name in constants else signature[name] for name in kernel.arg_names},
        constexprs={(kernel.arg_names.index(name),): value for name, value in constants.items()},
        attrs=aligned,
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": num_warps})
    resources, instructions = disassemble(compiled.asm["cubin"])
    return {
        "capability": capability,
        "threads": 32 * num_warps,
        "registers": resources["REG"],
        "stack_bytes": resources["STACK"],
        "local_bytes": resources["LOCAL"],
        "shared_bytes": compiled.metadata.shared,
        "instructions": instructions,
    }


def disassemble(cubin: bytes) -> tuple[dict[str, int], dict[str, int]]:
    """Resources, and how often each instruction that moves memory occurs."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage, code = (
            subprocess.run([TOOLS / "cuobjdump", option, file.name], capture_output=True, text=True, check=True).stdout
            for option in ("--dump-resource-usage", "--dump-sass")
        )
    resources = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    found = re.findall(r"\b((?:LDG|STG|LDL|STL)[.\w]*)", code)
    return resources, {name: found.count(name) for name in sorted(set(found))}


def main() -> None:
    dtypes = sys.argv[1].split(",")
    capabilities = [int(capability) for capability in sys.argv[2].split(",")]
    cases = itertools.product(("forward", "backward"), MAPS, dtypes, capabilities)
    kernels = [compile_group_norm(direction, *sizes, dtype, cc) for direction, sizes, dtype, cc in cases]
    kernels += [compile_noise(values, cc) for values, cc in itertools.product(IMAGES, capabilities)]
    print(json.dumps(kernels))


if __name__ == "__main__":
    main()
