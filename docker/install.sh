#!/usr/bin/env bash
# Install the locked packages and fastarat into the Python on PATH. A torch that is already there and new
# enough stays, with all that came with it: it is the build made for this image's CUDA.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# pip builds in the tree: what is left of an older build would be packed too.
rm -rf build
wanted=$(mktemp)
trap 'rm -rf "$wanted" build' EXIT

python3 - requirements/lock.txt >"$wanted" <<'PYTHON'
import re
import sys
from importlib import metadata
from pathlib import Path


def version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


kept = {}
torch = version("torch")
if torch and tuple(map(int, torch.split(".")[:2])) >= (2, 11):
    kept = {name: version(name) for name in ("torch", "triton", "setuptools") if version(name)}
    print("kept as installed:", *(f"{name} {found}" for name, found in kept.items()), file=sys.stderr)
for line in Path(sys.argv[1]).read_text().splitlines():
    if re.split("[=; ]", line)[0] not in kept:
        print(line)
PYTHON

python3 -m pip install --quiet -r "$wanted"
python3 -m pip install --quiet --no-deps --no-build-isolation .
