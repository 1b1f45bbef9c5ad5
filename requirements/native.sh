#!/usr/bin/env bash
# requirements/native.sh PYTHON: print, in one line, what FFCV is compiled with and this machine lacks, as Debian's
# packages. Other distributions name them otherwise; pkg-config finds the libraries on all.
set -euo pipefail
python=${1:?usage: requirements/native.sh PYTHON}
missing=()

needs() { # needs PACKAGE COMMAND...: the package is missing where the command fails
    "${@:2}" >/dev/null 2>&1 || missing+=("$1")
}

needs g++ command -v g++
needs python3-dev "$python" -c 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")'
needs libopencv-dev pkg-config --exists opencv4
needs libturbojpeg0-dev pkg-config --exists libturbojpeg
needs pkg-config command -v pkg-config
echo "${missing[*]-}"
