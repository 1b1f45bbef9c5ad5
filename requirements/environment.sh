#!/usr/bin/env bash
# requirements/environment.sh PYTHON: make the virtual environment .venv with this Python, unless it is there and whole.
# What stands in the way is one line.
set -euo pipefail
python=${1:?usage: requirements/environment.sh PYTHON}

stop() { # stop WHY: end with this line, and with a Python that would do, where there is one
    local other fits=python3.13
    for other in python3.13 python3.12 python3.11; do
        "$other" -c 'import ensurepip, venv' 2>/dev/null && fits=$other && break
    done
    echo "$1: make PYTHON=$fits" >&2
    exit 1
}

.venv/bin/python -m pip --version >/dev/null 2>&1 && exit

version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) ||
    stop "$python does not run, and fastarat needs Python 3.11, 3.12 or 3.13: install one and name it"
[[ $version =~ ^3\.1[123]$ ]] || stop "$python is Python $version, and fastarat needs 3.11, 3.12 or 3.13: name one"

has_venv() { "$python" -c 'import ensurepip, venv' 2>/dev/null; }
if ! has_venv && [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
    # Debian's python3 comes without what a virtual environment is made with.
    echo "$python makes no virtual environments yet: apt-get install python$version-venv"
    requirements/debian.sh "python$version-venv" || true
fi
if has_venv; then
    tool=venv
elif "$python" -c 'import virtualenv' 2>/dev/null; then
    tool=virtualenv
else
    stop "$python makes no virtual environments: apt-get install python$version-venv, as root, or name another"
fi
"$python" -m "$tool" --clear .venv >/dev/null || stop "$python cannot make .venv here: see above, or name another"
