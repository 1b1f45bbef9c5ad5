"""What the simulated GPU's start-up file patches is there; this needs no simulated GPU."""

import re
from importlib import import_module
from pathlib import Path

START_UP = Path(__file__).parent / "site" / "sitecustomize.py"
PATCHED = {
    "fastarat_kernels.torch_op": "torch_op",
    "fastarat.training.compiling.compiled": "build_step",
    "fastarat.training.state": "Training",
    "fastarat.evaluation.accuracies": "accuracies",
    "fastarat.evaluation.autoattack.checks": "check_logits",
    "fastarat.training.tuning.gate": "compare",
    "fastarat.training.tuning.subject": "Subject",
    "fastarat.verification.doctor": "_is_finite",
    "bench.kernels.measure": "_compare",
}


def test_what_is_patched_exists():
    named = re.findall(r'"([\w.]+\.[\w.]+)": _', START_UP.read_text())
    assert set(named) == set(PATCHED)
    assert all(hasattr(import_module(module), name) for module, name in PATCHED.items())
