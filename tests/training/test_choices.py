"""Kernels and the kind of step are chosen by what the machine has; what it has not is said with its fix."""

import re
import shutil
from dataclasses import replace
from pathlib import Path
from subprocess import CalledProcessError

import pytest
import torch
from fastarat_kernels.implementations import TRITON

from fastarat.common.choice_log import ChoiceLog
from fastarat.common.errors import UserError
from fastarat.config.recipes import recipe
from fastarat.training.choices import (
    Choices,
    as_begun,
    choose_compile,
    choose_device,
    choose_dtype,
    choose_kernels,
    note_tf32,
)
from fastarat.training.compiling import toolchain
from fastarat.training.compiling.toolchain import why_no_gpu
from fastarat.verification.doctor import _gpus

CONFIG = recipe("digits-arat")


def ones_on_the_cpu(*size, device):
    return torch.full(size, 1.0)


def no_memory(*size, device):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB")


def no_kernel(*_, **__):
    raise CalledProcessError(1, "gcc")


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine whose GPU has this compute capability, and these compilers; it may lack headers or libcuda."""
    (tmp_path / "Python.h").touch()

    def with_parts(capability=(9, 0), compilers=("gcc", "g++"), lacks="", ones=ones_on_the_cpu, **kernels):
        monkeypatch.delenv("CC", raising=False)
        monkeypatch.delenv("CXX", raising=False)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: capability >= (8, 0))
        monkeypatch.setattr(toolchain, "python_headers", lambda: tmp_path / "none" if lacks == "Python.h" else tmp_path)
        monkeypatch.setattr(toolchain, "_libcuda", lambda: lacks != "libcuda")
        monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}" if name in compilers else None)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
        monkeypatch.setattr(torch, "ones", ones)
        monkeypatch.setattr(toolchain, "TRITON", replace(TRITON, **kernels))
        toolchain._why_no_kernel.cache_clear()

    yield with_parts
    toolchain._why_no_kernel.cache_clear()


def chosen(name, device, dtype="bf16", mode="graph", **settings):
    """The choice, and the reasons that were recorded."""
    record = ChoiceLog(quiet=True)
    config = replace(CONFIG, **settings)
    if name == "compile":
        made = choose_compile(config, device, record)
    else:
        made = choose_kernels(config, device, dtype, mode, record)
    return made, [choice["why"] for choice in record.choices]


def test_a_gpu_with_a_compiler_gets_the_captured_step_and_the_fused_kernels(machine):
    machine()
    assert chosen("compile", "cuda")[0] == "graph"
    assert chosen("kernels", "cuda")[0] == "triton"


@pytest.mark.parametrize(
    ("parts", "word"),
    [
        ({"compilers": ()}, "install gcc"),
        ({"capability": (7, 5)}, "Some GPU is older"),
        ({"lacks": "Python.h"}, "install python3-dev"),
        ({"lacks": "libcuda"}, "run /sbin/ldconfig"),
        ({"pooled_features": no_kernel}, "cannot run a kernel here .*gcc"),
        ({"augment": no_kernel}, "cannot run a kernel here .*gcc"),
        ({"ones": no_memory}, "cannot run a kernel here .*out of memory"),
    ],
)
def test_a_gpu_that_triton_cannot_serve_runs_eagerly_in_pytorch_and_the_record_says_why(machine, parts, word):
    machine(**parts)
    for name, choice in (("compile", "eager"), ("kernels", "pytorch")):
        made, (why,) = chosen(name, "cuda")
        assert made == choice and re.search(word, why)
    with pytest.raises(UserError, match=f"--compile graph: .*{word}.*--compile eager"):
        chosen("compile", "cuda", compile="graph")
    with pytest.raises(UserError, match=f"--kernels triton: .*{word}.*--kernels pytorch"):
        chosen("kernels", "cuda", kernels="triton")


@pytest.mark.parametrize("mode", ["compile", "eager"])
def test_kernels_that_the_host_starts_one_by_one_are_not_chosen_but_can_be_asked_for(machine, mode):
    machine()
    made, (why,) = chosen("kernels", "cuda", mode=mode)
    assert made == "pytorch" and "CUDA graph" in why
    assert chosen("kernels", "cuda", mode=mode, kernels="triton") == ("triton", [])


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


@pytest.fixture
def no_gpu_for_torch(monkeypatch):
    """A CUDA build of torch that can use no GPU."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.fixture
def old_driver(monkeypatch, tmp_path, no_gpu_for_torch):
    """A machine with an NVIDIA driver that this torch cannot use."""
    version = tmp_path / "version"
    version.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\n")
    monkeypatch.setattr(toolchain, "DRIVERS", ((version,),))
    monkeypatch.setattr(toolchain, "DRIVER_VERSION", version)


def test_a_driver_that_torch_cannot_use_is_refused_and_never_a_training_on_the_cpu(old_driver, monkeypatch):
    log = ChoiceLog(quiet=True)
    for settings in ({}, {"device": "cuda"}, {"gpus": 1}):
        with pytest.raises(UserError, match=r"with NVIDIA driver 535\.104\.05: install a newer driver.*--device cpu"):
            choose_device(replace(CONFIG, **settings), log)
    assert [finding.state for finding in _gpus()] == ["broken"]
    assert choose_device(replace(CONFIG, device="cpu"), log) == "cpu"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # hidden on purpose
    assert choose_device(CONFIG, log) == "cpu"


@pytest.mark.parametrize(
    ("there", "has_driver"),
    [
        (("/dev/nvidiactl",), True),
        (("/dev/dxg", "/usr/lib/wsl/lib/libcuda.so.1"), True),
        (("/dev/dxg",), False),  # WSL2 with a GPU of another maker
        ((), False),
    ],
)
def test_a_driver_is_found_on_linux_and_in_wsl2(no_gpu_for_torch, monkeypatch, there, has_driver):
    monkeypatch.setattr(Path, "exists", lambda path: str(path) in there)
    assert why_no_gpu().startswith(f"torch {torch.__version__} cannot use a GPU with an NVIDIA driver" * has_driver)
    assert bool(why_no_gpu()) == has_driver


def test_triton_s_places_are_those_where_fastarat_looks(monkeypatch, tmp_path):
    assert (toolchain.python_headers() / "Python.h").exists()
    monkeypatch.setenv("LD_LIBRARY_PATH", f"/nowhere:{tmp_path}")
    (tmp_path / "libcuda.so.1").touch()
    assert toolchain._libcuda()


@pytest.mark.parametrize(("allowed", "dtype"), [(True, "fp32"), (False, "fp32"), (True, "bf16")])
def test_fp32_on_a_gpu_says_that_its_convolutions_round_to_tf32(monkeypatch, allowed, dtype):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
    log = ChoiceLog(quiet=True)
    note_tf32(Choices("cuda", dtype), log)
    note_tf32(Choices("cpu", dtype), log)
    assert [choice["value"] for choice in log.choices] == (["TF32"] if allowed and dtype == "fp32" else [])


@pytest.mark.parametrize(
    ("has", "dtype"), [(("avx512_bf16",), "bf16"), (("avx2", "amx_bf16"), "bf16"), (("avx512_f", "amx_tile"), "fp32")]
)
def test_a_cpu_trains_in_bf16_where_it_has_instructions_for_it(monkeypatch, has, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(has, True) | {"avx512_4vnniw": False})
    log = ChoiceLog(quiet=True)
    assert choose_dtype(CONFIG, "cpu", log) == dtype == log.choices[0]["value"]
    assert choose_dtype(replace(CONFIG, dtype="fp32"), "cpu", log) == "fp32" and len(log.choices) == 1


def test_a_run_that_goes_on_keeps_what_was_chosen_but_for_what_is_asked_for_and_on_another_device():
    session = {"device": "cpu", "dtype": "bf16", "kernels": "pytorch", "compile": "compile"}
    log = ChoiceLog(quiet=True)
    kept, _ = as_begun(replace(CONFIG, kernels="pytorch"), session, "cpu", log)
    assert (kept.dtype, kept.compile) == ("bf16", "compile")
    assert {choice["what"]: choice["value"] for choice in log.choices} == {"dtype": "bf16", "compile": "compile"}
    assert as_begun(replace(CONFIG, dtype="fp32"), session, "cpu", log)[0].dtype == "fp32"
    assert as_begun(CONFIG, session, "cuda", log) == (CONFIG, {})
    # Of an older version, which did not say where.
    assert as_begun(CONFIG, {"dtype": "fp32"}, "cpu", log) == (CONFIG, {})


def test_what_auto_chose_gives_way_where_it_cannot_run_any_more_and_what_is_named_does_not(monkeypatch):
    """As on another node, which has no compiler, and an older GPU."""
    monkeypatch.setattr("fastarat.training.choices.why_no_code", lambda device: "no C compiler")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    session = {"dtype": "bf16", "kernels": "triton", "compile": "graph", "without": ["augment"]}
    log = ChoiceLog(quiet=True)
    kept, unnamed = as_begun(CONFIG, session | {"device": "cuda"}, "cuda", log)
    assert (kept.dtype, kept.kernels, kept.compile, unnamed["without"]) == ("fp16", "pytorch", "eager", ())
    said = {choice["what"]: (choice["value"], choice["why"]) for choice in log.choices}
    assert said["compile"] == ("eager", "no C compiler") and said["kernels"] == ("pytorch", "no C compiler")
    assert said["dtype"] == ("fp16", "the GPU has no bf16") and choose_dtype(CONFIG, "cuda", log) == "fp16"
    assert as_begun(replace(CONFIG, dtype="bf16"), session | {"device": "cuda"}, "cuda", log)[0].dtype == "bf16"
    begun = {"device": "cpu", "dtype": "bf16", "kernels": "pytorch", "compile": "compile"}
    assert as_begun(CONFIG, begun, "cpu", log)[0].compile == "eager"
    named = as_begun(replace(CONFIG, compile="compile"), begun, "cpu", log)[0]
    with pytest.raises(UserError, match="--compile compile: no C compiler; --compile eager works without"):
        choose_compile(named, "cpu", log)


@pytest.mark.parametrize("strange", ["1", True, 0, [1]])
def test_a_run_that_goes_on_keeps_threads_and_graphs_that_were_tuned(monkeypatch, strange):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    session = {"device": "cpu", "dtype": "fp32", "kernels": "pytorch", "compile": "compile", "threads": 2}
    tuned = {"threads_chosen": 2, "unroll": False}
    log = ChoiceLog(quiet=True)
    unnamed = as_begun(replace(CONFIG, dtype="bf16"), session | tuned, "cpu", log)[1]
    assert (unnamed["threads"], unnamed["unroll"]) == (2, False)
    assert {"what": "threads", "value": "2", "why": "as the run has it so far"} in log.choices
    # Processes divide the cores anew, and what nobody chose is the machine's.
    assert as_begun(replace(CONFIG, procs=2), session | tuned, "cpu", log)[1]["threads"] is None
    untuned = as_begun(CONFIG, session | {"threads_chosen": strange, "unroll": 2}, "cpu", log)[1]
    assert (untuned["threads"], untuned["unroll"]) == (None, None)


def test_a_run_that_goes_on_does_without_the_kernels_that_it_did_without_unless_they_are_named(machine):
    machine()
    names = ["augment", "fused_batch_norm@512x4x4"]
    unknown = ["x", "fused_batch_norm@512x0x4", "augment@512x4x4", f"fused_batch_norm@{'9' * 5000}x4x4", 4]
    session = {"device": "cuda", "dtype": "bf16", "kernels": "triton", "compile": "graph", "without": names + unknown}
    log = ChoiceLog(quiet=True)
    kept, unnamed = as_begun(CONFIG, session, "cuda", log)
    assert (kept.kernels, [*unnamed["without"]]) == ("triton", names)
    assert "triton without augment and fused_batch_norm@512x4x4" in [choice["value"] for choice in log.choices]
    assert as_begun(replace(CONFIG, kernels="triton"), session, "cuda", log)[1]["without"] == ()
    old = {name: value for name, value in session.items() if name != "without"}
    assert as_begun(CONFIG, old, "cuda", log)[1]["without"] == ()


def test_a_run_that_goes_on_keeps_its_stem_whatever_is_named(machine):
    machine()
    session = {"device": "cuda", "dtype": "bf16", "kernels": "triton", "compile": "graph", "stem_channels": 8}
    log = ChoiceLog(quiet=True)
    assert as_begun(replace(CONFIG, kernels="pytorch"), session, "cuda", log)[1]["stem_channels"] == 8
    (said,) = [choice["value"] for choice in log.choices if choice["what"] == "stem channels"]
    assert said == "8"
    for strange in (None, "8", True):
        assert as_begun(CONFIG, {**session, "stem_channels": strange}, "cuda", log)[1]["stem_channels"] is None
