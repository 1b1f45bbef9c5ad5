"""Kernels and the kind of step are chosen by what the machine has; what it has not is said with its fix."""

import shutil
from dataclasses import replace

import pytest
import torch

from fastarat.common.choice_log import ChoiceLog
from fastarat.common.errors import UserError
from fastarat.config.recipes import recipe
from fastarat.training.choices import choose_compile, choose_kernels

CONFIG = recipe("digits-arat")


@pytest.fixture
def machine(monkeypatch):
    """A machine whose GPU has this compute capability, and these compilers."""

    def with_parts(capability=(9, 0), compilers=("gcc", "g++")):
        monkeypatch.delenv("CC", raising=False)
        monkeypatch.delenv("CXX", raising=False)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
        monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}" if name in compilers else None)

    return with_parts


def chosen(name, device, dtype="bf16", **settings):
    """The choice, and the reasons that were recorded."""
    record = ChoiceLog(quiet=True)
    config = replace(CONFIG, **settings)
    made = (
        choose_compile(config, device, record) if name == "compile" else choose_kernels(config, device, dtype, record)
    )
    return made, [choice["why"] for choice in record.choices]


def test_a_gpu_with_a_compiler_gets_the_captured_step_and_the_fused_kernels(machine):
    machine()
    assert chosen("compile", "cuda")[0] == "graph"
    assert chosen("kernels", "cuda")[0] == "triton"


@pytest.mark.parametrize(
    ("parts", "word"), [({"compilers": ()}, "install gcc"), ({"capability": (7, 5)}, "Some GPU is older")]
)
def test_a_gpu_that_triton_cannot_serve_runs_eagerly_in_pytorch_and_the_record_says_why(machine, parts, word):
    machine(**parts)
    for name, choice in (("compile", "eager"), ("kernels", "pytorch")):
        made, (why,) = chosen(name, "cuda")
        assert made == choice and word in why
    with pytest.raises(UserError, match=f"--compile graph: .*{word}.*--compile eager"):
        chosen("compile", "cuda", compile="graph")
    with pytest.raises(UserError, match=f"--kernels triton: .*{word}.*--kernels pytorch"):
        chosen("kernels", "cuda", kernels="triton")


def test_eager_and_plain_pytorch_need_nothing(machine):
    machine(compilers=(), capability=(5, 0))
    assert chosen("compile", "cuda", compile="eager") == ("eager", [])
    assert chosen("kernels", "cuda", kernels="pytorch") == ("pytorch", [])


def test_float64_has_no_fused_kernels(machine):
    machine()
    made, (why,) = chosen("kernels", "cuda", "fp64")
    assert made == "pytorch" and "fp32, bf16 and fp16" in why
    with pytest.raises(UserError, match="fp32, bf16 and fp16"):
        chosen("kernels", "cuda", "fp64", kernels="triton")


def test_a_compiler_that_is_named_and_missing_is_named_back(machine, monkeypatch):
    machine()
    monkeypatch.setenv("CXX", "ccache g++")
    with pytest.raises(UserError, match=r"\$CXX is 'ccache g\+\+', which is not found"):
        chosen("compile", "cpu", compile="compile")
