#!/usr/bin/env bash
# Set-up of a fresh clone: system packages, .venv, this package with its C++ extension. Does only what is missing.
#   ./setup.sh        to run        ./setup.sh dev    to run and to test
set -euo pipefail
cd "$(dirname "$0")"
python=${PYTHON:-python3}
extras=cpu
if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then extras=gpu; fi
if [ "${1:-}" = dev ]; then extras=$extras,dev; fi

# A set-up to test is one to run too.
for stamp in ".venv/.ready-$extras" ".venv/.ready-$extras,dev"; do
    if [ -e "$stamp" ] && [ -z "$(find pyproject.toml constraints.txt CMakeLists.txt csrc setup.sh -newer "$stamp")" ]; then
        exit 0
    fi
done

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "setup: $("$python" --version) is too old, 3.11 is needed: PYTHON=/path/to/python3.11 make quickstart"; exit 1; }

# FFCV is built from source against OpenCV and TurboJPEG; torch.compile calls g++ and needs the Python headers.
needed=()
for package in g++ make pkg-config libopencv-dev libturbojpeg0-dev; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || needed+=("$package")
done
version=$("$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
"$python" -c 'import ensurepip' 2>/dev/null || needed+=("$version-venv")
"$python" -c 'import os, sysconfig, sys; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' ||
    needed+=("$version-dev")
# The images of the quickstart; where this package cannot be had they are downloaded.
wanted=("${needed[@]}")
dpkg-query -W -f '${Status}' dataset-fashion-mnist 2>/dev/null | grep -q 'ok installed' || wanted+=(dataset-fashion-mnist)

if [ ${#wanted[@]} -gt 0 ] && command -v apt-get >/dev/null; then
    if [ "$(id -u)" = 0 ]; then as_root=env
    elif command -v sudo >/dev/null && { [ -t 0 ] || sudo -n true 2>/dev/null; }; then as_root=sudo
    else as_root=; fi
    if [ -n "$as_root" ]; then
        echo "setup: installing ${wanted[*]}"
        $as_root apt-get update -qq || [ ${#needed[@]} -eq 0 ] # without network, what is there may do
        apt-cache show dataset-fashion-mnist >/dev/null 2>&1 || wanted=("${needed[@]}")
        [ ${#wanted[@]} -eq 0 ] || $as_root env DEBIAN_FRONTEND=noninteractive \
            apt-get install -y -qq --no-install-recommends "${wanted[@]}" >/dev/null || [ ${#needed[@]} -eq 0 ]
        needed=()
    fi
fi
if [ ${#needed[@]} -gt 0 ]; then
    echo "setup: system packages are missing and cannot be installed from here. Run this line, then the command again:"
    echo "    sudo apt-get update && sudo apt-get install -y ${needed[*]}"
    exit 1
fi

[ -x .venv/bin/pip ] || "$python" -m venv --clear .venv
echo "setup: installing Python packages into .venv (several GB at the first time)"
.venv/bin/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[$extras]" |
    grep -E '^(Collecting|Building|Successfully|Installing)' | cut -c1-110
touch ".venv/.ready-$extras"
