"""csrc under the address and undefined behaviour sanitizers, fuzzed for a bounded time (fuzz_target.cpp)."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 20


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not (shutil.which("cmake") and shutil.which("c++")), reason="cmake or a C++ compiler is missing")
def test_fuzzer_finds_nothing(tmp_path: Path) -> None:
    subprocess.run(["cmake", "-S", ROOT, "-B", tmp_path, "-DSGDM_SANITIZE=ON"], check=True, capture_output=True)
    subprocess.run(["cmake", "--build", tmp_path], check=True, capture_output=True)
    fuzzer = subprocess.run([tmp_path / "fuzz_raster", str(SECONDS)], capture_output=True, text=True)
    assert fuzzer.returncode == 0, fuzzer.stderr[-4000:]
    inputs = int(fuzzer.stdout.split()[0])
    assert inputs > 1000, fuzzer.stdout
