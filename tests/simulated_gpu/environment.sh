#!/usr/bin/env bash
# tests/simulated_gpu/environment.sh FOLDER: make FOLDER/venv with the CUDA build of torch and what the tests need
# (5.8 GB), and put the simulated GPU into it. The Python is $PYTHON, or python3.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
folder=${1:?usage: tests/simulated_gpu/environment.sh FOLDER}
torch=2.14.1

mkdir -p "$folder"
if ! "$folder/venv/bin/python" -c 'import torch, pytest, tyro' 2>/dev/null; then
    "${PYTHON:-python3}" -m venv --clear "$folder/venv"
    # The versions of the other checks, but for torch's and its Triton's.
    grep -hv -e '^torch==' -e '^triton==' -e '^-r ' requirements/lock.txt >"$folder/requirements.txt"
    grep -h '^pytest' requirements/dev.txt | grep -v cov >>"$folder/requirements.txt"
    "$folder/venv/bin/python" -m pip install --quiet "torch==$torch" -r "$folder/requirements.txt"
fi
[[ -e $folder/.loaders ]] || requirements/loaders.sh "$folder/venv/bin/python" "$folder/.loaders"
"$folder/venv/bin/python" "$here/build.py" "$folder/venv"
