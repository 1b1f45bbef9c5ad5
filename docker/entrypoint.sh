#!/usr/bin/env bash
# What `docker run IMAGE …` starts. `bench [throughput|campaign|kernels|loaders|startup] [flags]` is a benchmark from
# the sources that the image was built from (throughput if none is named), its rows in ./bench-results; all else goes
# to the fastarat command.
set -euo pipefail
home=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

start() { # start COMMAND...: through NVIDIA's start script, which fits CUDA to the driver; its banner goes to stderr
    local nvidia=/opt/nvidia/nvidia_entrypoint.sh
    if [[ -x $nvidia ]]; then
        # shellcheck disable=SC2016 # the inner shell is the one to expand it
        exec "$nvidia" bash -c 'exec "$@" >&3 3>&-' start "$@" 3>&1 >&2
    fi
    exec "$@"
}

[[ ${1-} == bench ]] || start fastarat "$@"
shift
name=throughput
if [[ $# -gt 0 && $1 != -* ]]; then
    name=$1
    shift
fi
# Flags given later win, so that all of these can be changed; a forgotten --gpus is an error, never a run on the CPU.
case $name in
throughput | kernels | loaders | startup) defaults=(--device cuda --rows "bench-results/$name.jsonl") ;;
campaign) defaults=(--budget 540 --out bench-results/campaign --state runs/campaign) ;;
*)
    echo "bench: error: no benchmark '$name': give throughput, campaign, kernels, loaders or startup" >&2
    exit 2
    ;;
esac

# The working directory may hold another checkout: modules come from the image's, never from there.
export PYTHONSAFEPATH=1 PYTHONPATH="$home:$home/kernels"
command=(python3 -m "bench.$name" "${defaults[@]}" "$@")
{ printf '%q ' "${command[@]}" && echo; } >&2
start "${command[@]}"
