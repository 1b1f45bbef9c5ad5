#!/usr/bin/env bash
# docker/install.sh VENV: make a virtual environment that sees the image's own packages (torch, DALI, apex) and leaves
# them as they are; install the locked packages and fastarat into it. A torch, triton, numpy and setuptools that are
# there and new enough stay (docker/wanted.py): the image's compiled packages were built with them.
set -euo pipefail
venv=$(realpath -m "${1:?usage: docker/install.sh VENV}")
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# NVIDIA's images pin every package of theirs in a constraints file, which a lock with other versions can only fail on.
unset PIP_CONSTRAINT
# pip builds in the tree: what is left of an older build would be packed too.
rm -rf build
wanted=$(mktemp)
trap 'rm -rf "$wanted" build' EXIT

python3 -m venv --system-site-packages "$venv"
"$venv/bin/python" docker/wanted.py requirements/lock.txt >"$wanted"
"$venv/bin/python" -m pip install --quiet -r "$wanted"
"$venv/bin/python" -m pip install --quiet --no-deps --no-build-isolation .
