"""The kernels' benchmark on the simulated GPU: it runs to its end; its times are the host's, and mean nothing."""

import os
import subprocess
import sys
from pathlib import Path

from tests.helpers.simulated_gpu import counted_only
from tests.helpers.simulated_gpu import pytestmark as needs_simulated_gpu

pytestmark = [*needs_simulated_gpu, counted_only]
ROOT = Path(__file__).parents[2]


def test_the_kernels_are_measured_to_the_end():
    command = [sys.executable, "-m", "bench.kernels", "--smoke", "--device", "cuda"]
    done = subprocess.run(
        [*command, "--kernels", "pgd_step", "pooled_features"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr
    assert "simgpu:" not in done.stderr and "WRONG" not in done.stderr, done.stderr
