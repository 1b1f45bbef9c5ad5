"""What training and the benchmarks import: nothing heavy that torch did not, nothing that a GPU's machine may lack."""

import json
import os
import subprocess
import sys

import pytest

from tests.helpers.unmeasured import UNMEASURED

# Each takes a second or more to import, and only some commands need it.
HEAVY = ("sklearn", "matplotlib", "tyro", "pooch", "scipy", "pandas", "torchvision", "torch._dynamo", "torch._inductor")
LOADERS = ("ffcv", "nvidia.dali", "numba", "cv2")
ABSENT = ("tyro", "pooch", "apex", "torchvision", "tensorboard", "onnx", "sklearn")
STAGES = (
    *(f"bench.{part}.__main__" for part in ("campaign", "kernels", "loaders", "startup")),
    *("bench.campaign.machine", "bench.campaign.golden", "bench.robustness.one_training"),
    *(f"bench.loaders.{name}" for name in ("in_a_process", "training", "check")),
)
CODE = f"""
import json, sys, torch
before = set(sys.modules)
import fastarat.training.train
training = sorted(set(sys.modules) - before)
from fastarat.verification import doctor
assert list(map(doctor._optional, doctor.OPTIONAL))
doctor = sorted(set(sys.modules) - before)
sys.modules.update(dict.fromkeys({ABSENT}))
import {", ".join(STAGES)}
code = bench.kernels.__main__.main(['--device', 'cpu', '--smoke', '--kernels', 'augment'])
print(json.dumps([training, doctor, code]))
"""


@pytest.fixture(scope="module")
def process():
    """What one process brings in for training, and for looking for loaders too; then the stages, and kernels run."""
    return subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, env={**os.environ, **UNMEASURED}
    )


def test_training_brings_nothing_heavy_that_torch_did_not_nor_does_looking_for_loaders(process):
    training, looking, _ = json.loads(process.stdout.splitlines()[-1])
    assert not {*HEAVY, *ABSENT} & set(training) and "fastarat.training.step.train_step" in training
    assert not {*LOADERS, *ABSENT} & set(looking)


def test_the_stages_import_nothing_that_a_gpu_s_machine_may_lack(process):
    """Nor does the benchmark of the kernels when it runs, whose stages are most of a campaign's."""
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout.splitlines()[-1])[-1] == 0


def test_importing_fastarat_by_itself_imports_no_torch():
    code = "import sys, fastarat; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
