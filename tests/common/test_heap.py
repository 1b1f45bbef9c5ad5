"""What is freed stays with the process: the pages are counted that the system had to give it anew."""

import ctypes
import os
import subprocess
import sys

import pytest
import torch

from fastarat.common import distributed, heap

BLOCKS = """
import ctypes, sys
from resource import RUSAGE_SELF, getrusage
from fastarat.common.heap import keep_freed_memory

if "keep" in sys.argv:
    keep_freed_memory()
library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
for _ in range(3):
    before = getrusage(RUSAGE_SELF).ru_minflt
    blocks = [ctypes.c_void_p(library.malloc(16 << 20)) for _ in range(8)]
    for block in blocks:
        library.memset(block, 1, 16 << 20)
    for block in blocks:
        library.free(block)
print(getrusage(RUSAGE_SELF).ru_minflt - before)
"""
"""128 MiB are 32,768 pages, or 64 large ones; tensors would do as well, with torch's small objects between them"""


def faults(*words, **variables):
    environ = {name: value for name, value in os.environ.items() if name not in heap._OWN} | variables
    command = [sys.executable, "-c", BLOCKS, *words]
    return int(subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="the C library is not glibc")
def test_what_a_step_frees_is_there_for_the_next_one():
    new = faults()
    assert faults("keep") < new / 2
    assert faults("keep", MALLOC_TRIM_THRESHOLD_="131072") > new / 2  # the user's own settings stay


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_process_that_computes_on_a_cpu_keeps_it(monkeypatch, device):
    kept = []
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(distributed, "keep_freed_memory", lambda: kept.append(device))
    distributed.join_world(device)
    assert kept == ["cpu"] * (device == "cpu")
