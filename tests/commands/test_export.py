"""An exported model gives the same answers where there is no fastarat."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fastarat.__main__ import main
from fastarat.models.convert import plain_branch
from fastarat.models.registry import build_model
from fastarat.runs.deployed import load_deployed
from fastarat.runs.weights import Description, load_model, save_weights
from tests.helpers.unmeasured import UNMEASURED

# Exported and trained nets run the same operations on the same weights; only the memory format (and so the
# order of sums) may differ: a few float32 roundings of 6e-8 through up to forty layers.
ROUNDING = {"rtol": 1e-4, "atol": 1e-5}

OUTSIDE = """
    import sys

    class Absent:  # whatever is installed beside torch
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in ("fastarat", "fastarat_kernels", "safetensors"):
                raise ImportError(name + " is not there")

    sys.meta_path.insert(0, Absent())
    import torch

    try:
        import fastarat
    except ImportError:
        pass
    else:
        sys.exit("fastarat can be imported here")
    torch.set_num_threads(1)
    images = torch.load("images.pt")
    for name in sys.argv[1:]:
        sys.path.insert(0, name)
        from model import CLASSES, load

        model = load()
        assert not model.training
        with torch.no_grad():
            torch.save({"logits": model(images), "classes": list(CLASSES)}, name + "/answers.pt")
        sys.path.remove(name)
        del sys.modules["model"]
"""
NETS = ("tiny", "resnet18", "wrn-10-1")


def _images(shape: tuple[int, int, int]) -> torch.Tensor:
    return torch.rand(4, *shape, generator=torch.Generator().manual_seed(0))


def _logits(run: Path, images: torch.Tensor, branch: str) -> torch.Tensor:
    with torch.no_grad():
        return load_deployed(run, "last", branch)[0](images)


def _weights(file: Path, name: str) -> None:
    """A net for digits whose parameters and statistics are no initial ones, as `train` writes them."""
    net = plain_branch(build_model(name, 10, in_channels=1))
    for norm in (module for module in net.modules() if isinstance(module, nn.BatchNorm2d)):
        for tensor, low in ((norm.weight, 0.5), (norm.bias, -0.5), (norm.running_mean, -0.5), (norm.running_var, 0.5)):
            nn.init.uniform_(tensor, low, low + 1)
    classes = tuple(map(str, range(10)))
    description = Description(name, 10, 1, (8, 8), 16, classes, "digits", "linf", 45.9, "arat")
    save_weights(file, net, description)


@pytest.fixture(scope="module")
def answers(trained, tmp_path_factory) -> dict[str, dict]:
    """What exports answer in one isolated process that knows torch and the exported directories alone.

    By name: both branches of the trained run, and every kind of net.
    """
    folder = tmp_path_factory.mktemp("exports")
    sources: dict[str, tuple[object, ...]] = {branch: (trained, "--branch", branch) for branch in ("adv", "clean")}
    for name in NETS:
        _weights(folder / f"{name}.safetensors", name)
        sources[name] = (folder / f"{name}.safetensors",)
    for name, source in sources.items():
        assert main(["export", *map(str, source), "--out", str(folder / name)]) == 0
    torch.save(_images((1, 8, 8)), folder / "images.pt")
    command = [sys.executable, "-I", "-c", textwrap.dedent(OUTSIDE), *sources]
    subprocess.run(command, cwd=folder, check=True, timeout=120, env={**os.environ, **UNMEASURED})
    weights = {name: folder / f"{name}.safetensors" for name in NETS}
    return {name: {**torch.load(folder / name / "answers.pt"), "weights": weights.get(name)} for name in sources}


@pytest.mark.parametrize("branch", ["adv", "clean"])
def test_an_export_of_a_trained_run_answers_without_fastarat(answers, trained, branch):
    found, images = answers[branch], _images((1, 8, 8))
    assert torch.allclose(found["logits"], _logits(trained, images, branch), **ROUNDING)
    other = "clean" if branch == "adv" else "adv"
    assert not torch.allclose(found["logits"], _logits(trained, images, other), **ROUNDING)
    assert found["classes"] == [str(digit) for digit in range(10)]


@pytest.mark.parametrize("model", NETS)
def test_every_net_can_be_exported(answers, model):
    with torch.no_grad():
        logits = load_model(answers[model]["weights"])[0](_images((1, 8, 8)))
    assert torch.allclose(answers[model]["logits"], logits, **ROUNDING)


def test_without_another_place_an_export_lies_in_its_run_and_says_where(fastarat, trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    result = fastarat("export", run)
    names = [f"{run}/export/{name}" for name in ("model.safetensors", "model.py", "README.md")]
    assert result.code == 0 and result.out.splitlines() == names
    assert all(Path(name).is_file() for name in names)


def test_the_model_card_says_what_it_is_and_what_it_holds_against(fastarat, trained, tmp_path):
    assert fastarat("export", trained, "--out", "exported").code == 0
    card = (tmp_path / "exported/README.md").read_text()
    parameters = sum(p.numel() for p in load_deployed(trained)[0].parameters())
    assert card.startswith("# digits, arat, digits\n") and f"{parameters:,} parameters" in card
    assert "linf, eps 45.9/255" in card and "float32 [N, 1, 8, 8]" in card and "stored values / 16" in card
    assert "arat, epoch 2" in card and "as they are stored" in card and "{" not in card


def test_files_are_listed_as_json(fastarat, trained):
    files = fastarat("export", trained, "--out", "exported", "--json").json
    assert [Path(file).name for file in files] == ["model.safetensors", "model.py", "README.md"]


def test_an_earlier_checkpoint_and_a_weights_file_can_be_exported(fastarat, trained, tmp_path):
    assert fastarat("export", trained, "--checkpoint", "0", "--out", "start").code == 0
    assert fastarat("export", trained / "model.safetensors", "--out", "end").code == 0
    start, end = (load_file(tmp_path / out / "model.safetensors") for out in ("start", "end"))
    assert not torch.equal(start["conv1.weight"], end["conv1.weight"])
    assert torch.equal(end["conv1.weight"], load_file(trained / "model.safetensors")["conv1.weight"])


def test_an_export_is_never_overwritten(fastarat, trained, tmp_path):
    assert fastarat("export", trained, "--out", "exported").code == 0
    before = (tmp_path / "exported/model.safetensors").read_bytes()
    result = fastarat("export", trained, "--branch", "clean", "--out", "exported")
    assert result.code == 2 and "another --out" in result.error
    assert (tmp_path / "exported/model.safetensors").read_bytes() == before


def test_eval_takes_an_exported_directory_and_gives_the_runs_numbers(fastarat, trained):
    assert fastarat("export", trained, "--out", "exported").code == 0
    few = ("--num-images", "40", "--steps", "2", "--json")
    exported, run = fastarat("eval", "exported", *few).json, fastarat("eval", trained, *few).json
    for result in (exported, run):
        del result["model"], result["seconds"], result["record"]
    assert exported == run


@pytest.mark.no_cover  # torch traces the net; the export that is searched for names is counted
def test_onnx_gives_the_same_logits_for_any_batch(fastarat, trained, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    result = fastarat("export", trained, "--out", "exported", "--onnx", "--json")
    assert result.code == 0 and json.loads(result.out)[-1].endswith("model.onnx")
    session = runtime.InferenceSession(tmp_path / "exported/model.onnx", providers=["CPUExecutionProvider"])
    for count in (1, 4):
        images = _images((1, 8, 8))[:count]
        (logits,) = session.run(["logits"], {"images": images.numpy()})
        # Another runtime's float32 convolutions.
        assert np.allclose(logits, _logits(trained, images, "adv").numpy(), rtol=1e-5, atol=1e-5)


def test_without_the_onnx_packages_the_extra_is_named(fastarat, trained, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    result = fastarat("export", trained, "--out", "exported", "--onnx")
    assert result.code == 2 and "fastarat[onnx]" in result.error
    assert not (tmp_path / "exported").exists()
