#!/usr/bin/env bash
# Debian packages, for the image and for a bare machine. Triton and torch.compile build small C and C++
# modules at run time, so a compiler and Python's headers are needed to run and not only to develop;
# git tells the run record its commit.
set -euo pipefail

export DEBIAN_FRONTEND=noninteractive
apt-get update -q
apt-get install -q -y --no-install-recommends build-essential git python3-dev python3-venv
rm -rf /var/lib/apt/lists/*
