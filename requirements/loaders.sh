#!/usr/bin/env bash
# requirements/loaders.sh PYTHON STAMP: install FFCV and DALI, without which the tests run too, and write STAMP once
# both are there. What cannot be had here is one line each, and is tried again by the next call.
set -euo pipefail
python=${1:?usage: requirements/loaders.sh PYTHON STAMP} stamp=${2:?usage: requirements/loaders.sh PYTHON STAMP}
logs=$(dirname "$stamp")

install() { # install NAME: without dependencies, since the file lists them all, and torch and numpy have to stay
    "$python" -m pip install --quiet --no-deps --no-build-isolation -r "requirements/$1.txt" >"$logs/$1.log" 2>&1
}

without() { # without NAME WHY: say that the tests go on, and fail
    printf 'going on without %s, and the tests that need it skip: %s\n' "$1" "$2" >&2
    return 1
}

ffcv() {
    local missing loads='from fastarat.data.loading.decoders import ffcv_native; ffcv_native.load()'
    missing=$(requirements/native.sh "$python")
    if [[ -n $missing && $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
        echo "FFCV is compiled here and needs Debian packages: apt-get install $missing"
        # shellcheck disable=SC2086 # a word a package
        requirements/debian.sh $missing || true
        missing=$(requirements/native.sh "$python")
    fi
    [[ -z $missing ]] || without FFCV "apt-get install $missing, as root, then make test brings it" || return
    install ffcv || without FFCV "it could not be built, see $logs/ffcv.log" || return
    "$python" -c "$loads" >>"$logs/ffcv.log" 2>&1 || {
        "$python" -m pip uninstall --quiet --yes ffcv
        without FFCV "it was built and does not load, see $logs/ffcv.log"
    }
}

dali() {
    install dali || without DALI "it cannot be installed on this machine, see $logs/dali.log"
}

all=yes
ffcv || all=no
dali || all=no
[[ $all == no ]] || touch "$stamp"
