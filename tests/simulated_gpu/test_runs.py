"""Runs on the simulated GPU, as a user starts them: trained, evaluated, kept, resumed, in one process or several."""

import json
import os
import subprocess
import sys
from pathlib import Path
from shutil import copytree

import pytest

from fastarat.__main__ import main
from tests.helpers.simulated_gpu import HAS_VALUES, counted_only, values_only
from tests.helpers.simulated_gpu import pytestmark as needs_simulated_gpu

pytestmark = needs_simulated_gpu

ROOT = Path(__file__).parents[2]
SMALL = ["--batch", "32", "--num-train-images", "96", "--evaluation.num-images", "20", "--evaluation.steps", "2"]
SMALL += ["--evaluation.num-clean-images", "20", "--attack.steps", "2"]
OF_ONE_STEP = ("fgsm-rs", "n-fgsm", "standard")
METHODS = ("at", "arat", "trades", "mart", "lbgat", "arrest", *OF_ONE_STEP)


def trained(out: Path, method: str, *flags: str, epochs: int = 1) -> dict:
    """The last line of the metrics of a run."""
    few = SMALL[:-2] if method in OF_ONE_STEP else SMALL
    code = main(["train", f"digits-{method}", *few, "--epochs", str(epochs), "--out", str(out), *flags])
    assert code == 0
    assert (out / "model.safetensors").exists() and list((out / "checkpoints").iterdir())
    return json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])


COMPILED = [pytest.param(method, "graph", marks=counted_only) for method in METHODS]
COMPILED += [pytest.param("arat", "compile", marks=counted_only)]


@pytest.mark.parametrize(("method", "mode"), [*((method, "eager") for method in METHODS), *COMPILED])
def test_every_method_trains_evaluates_and_keeps_its_run(tmp_path, capsys, method, mode):
    teacher = []
    if method == "arrest":
        trained(tmp_path / "teacher", "standard", "--compile", "eager")
        teacher = ["--method.teacher", str(tmp_path / "teacher")]
    last = trained(tmp_path / "run", method, "--compile", mode, *teacher)
    assert last["step"] == 3 and "evaluation" in last
    assert (mode != "eager") == ("compiled for images of 8x8" in capsys.readouterr().err)
    if HAS_VALUES:
        assert 0 < last["train"]["loss"] < 100


@pytest.mark.parametrize("mode", ["eager", pytest.param("graph", marks=counted_only)])
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_every_precision_trains_and_evaluates(tmp_path, dtype, mode):
    assert trained(tmp_path / "run", "arat", "--dtype", dtype, "--compile", mode)["step"] == 3


@values_only
@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_a_run_that_goes_on_ends_in_the_weights_of_one_that_did_not_stop(tmp_path, mode):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    trained(whole, "at", "--compile", mode, "--checkpoint.every-s", "0", "--checkpoint.keep", "9", epochs=2)
    copytree(whole, parts)
    (parts / "model.safetensors").unlink()
    for newer in sorted((parts / "checkpoints").iterdir())[3:]:
        newer.unlink()
    assert main(["train", "--resume", str(parts)]) == 0
    assert (parts / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


@values_only
def test_a_default_run_is_evaluated_by_autoattack_in_graphs(tmp_path, capsys):
    trained(tmp_path / "run", "at")
    flags = ["--num-images", "20", "--attack", "autoattack", "--batch", "20"]
    assert main(["eval", str(tmp_path / "run"), *flags]) == 0
    said = capsys.readouterr()
    assert "uncaptured" not in said.err, said.err
    assert "after" in said.out


def in_processes(out: Path, num: int, *flags: str) -> str:
    """What a training in so many processes says."""
    command = ["-m", "fastarat", "train", "digits-at", *SMALL, "--epochs", "1", "--gpus", str(num), "--out", str(out)]
    environment = os.environ | {"SIMGPU_COUNT": str(num), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command, *flags], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stderr
    assert "simgpu:" not in done.stderr, done.stderr
    assert (out / "model.safetensors").exists()
    return done.stderr


@counted_only
@pytest.mark.parametrize(
    ("num", "flags"),
    [
        (2, ["--compile", "eager"]),
        (2, ["--compile", "eager", "--sync-bn"]),
        (2, ["--compile", "graph"]),
        (2, ["--compile", "graph", "--sync-bn", "--bf16-gradients"]),
        (8, ["--compile", "eager", "--kernels", "pytorch"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_processes_train_together_and_end(tmp_path, num, flags):
    in_processes(tmp_path / "run", num, *flags)
