#!/usr/bin/env bash
# requirements/debian.sh PACKAGE...: install Debian packages; needs root. apt's own words come where it fails.
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive
said=$(mktemp)
trap 'rm -f "$said"' EXIT
# Without a network the answer has to come in bearable time.
patience=(-q -y -o Acquire::Retries=1 -o Acquire::http::Timeout=20 -o DPkg::Lock::Timeout=120)
if ! { apt-get "${patience[@]}" update && apt-get "${patience[@]}" install --no-install-recommends "$@"; } \
    >"$said" 2>&1 </dev/null; then
    grep '^[EW]:' "$said" | tail -3 >&2
    exit 1
fi
