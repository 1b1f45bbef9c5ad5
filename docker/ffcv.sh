#!/usr/bin/env bash
# docker/ffcv.sh VENV: build FFCV into the environment that docker/install.sh made, and check that it reads what it
# wrote. It is compiled against the distribution's OpenCV and libjpeg-turbo.
set -euo pipefail
venv=$(realpath -m "${1:?usage: docker/ffcv.sh VENV}")
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export DEBIAN_FRONTEND=noninteractive
apt-get update -q
apt-get install -q -y --no-install-recommends libopencv-dev libturbojpeg0-dev pkg-config
rm -rf /var/lib/apt/lists/*

unset PIP_CONSTRAINT # as in docker/install.sh
# Without dependencies: the file lists them all, and torch and numpy have to stay.
"$venv/bin/python" -m pip install --quiet --no-deps --no-build-isolation -r requirements/ffcv.txt
"$venv/bin/python" docker/check_ffcv.py
