"""Which device, number format, kernels and kind of step a run uses, checked against what is there."""

import importlib.util
import os
import shutil
from dataclasses import dataclass
from typing import Literal

import torch

from fastarat.common.choice_log import ChoiceLog
from fastarat.common.errors import UserError
from fastarat.common.processes import num_here
from fastarat.config import Config
from fastarat.config.training import CompileMode
from fastarat.training.step.precision import Dtype


@dataclass(frozen=True)
class Choices:
    """What a run computes with; as it stands the plain way, which works everywhere."""

    device: str = "cpu"
    """cpu or cuda"""
    dtype: Dtype = "fp32"
    kernels: Literal["pytorch", "triton"] = "pytorch"
    compile: CompileMode = "eager"


def choose(config: Config, log: ChoiceLog, device: str | None = None) -> Choices:
    """What this configuration computes with on this machine; `log` takes the reason of each automatic choice.

    `device`: where it is chosen already. Raises `UserError` where the configuration asks for what is not there.
    """
    device = device or choose_device(config, log)
    dtype = choose_dtype(config, device, log)
    kernels = choose_kernels(config, device, dtype, log)
    return Choices(device, dtype, kernels, choose_compile(config, device, log))


def choose_device(config: Config, log: ChoiceLog) -> str:
    """`cpu` or `cuda`. Raises `UserError` if more is asked for than there is."""
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if num_here(config.gpus) > num_gpus:
        raise UserError(f"--gpus {config.gpus}: this machine has {_gpus(num_gpus)}: {_fix(num_gpus)}")
    if config.device == "cuda" and num_gpus == 0:
        raise UserError(f"--device cuda: this machine has {_gpus(0)}: {_fix(0)}")
    if config.procs and config.device != "cuda":
        return "cpu"
    if config.device != "auto":
        return config.device
    if num_gpus:
        return log.choose("device", "cuda", torch.cuda.get_device_name())
    return log.choose("device", "cpu", "torch sees no GPU")


def choose_dtype(config: Config, device: str, log: ChoiceLog) -> Dtype:
    """The number format; `auto` is bf16 on a GPU that has it, else fp16 there, and fp32 on a CPU."""
    if config.dtype != "auto":
        return config.dtype
    if device == "cpu":
        log.choose("dtype", "fp32", "the CPU's fastest exact format")
        return "fp32"
    if torch.cuda.is_bf16_supported(including_emulation=False):
        log.choose("dtype", "bf16", "the GPU has it")
        return "bf16"
    log.choose("dtype", "fp16", "the GPU has no bf16")
    return "fp16"


def choose_compile(config: Config, device: str, log: ChoiceLog) -> CompileMode:
    """How the step runs; `auto` is graph on a GPU, and eager on a CPU. Raises `UserError` for what cannot run here."""
    if config.compile == "graph" and device == "cpu":
        raise UserError("--compile graph captures a CUDA graph, and this run is on the CPU: give compile or eager")
    missing = _why_no_code(device)
    if config.compile in ("compile", "graph") and missing:
        raise UserError(f"--compile {config.compile}: {missing}; --compile eager works without")
    if config.compile != "auto":
        return config.compile
    if device == "cpu" or missing:
        log.choose("compile", "eager", missing or "on a CPU compiling takes longer than a short run gains")
        return "eager"
    log.choose("compile", "graph", "one launch a step")
    return "graph"


def compiler(device: str) -> str | None:
    """What compiled steps need: on a CPU a C++ compiler ($CXX, else g++); on a GPU a C compiler ($CC, else gcc or
    clang), with which Triton builds what starts its kernels. The path, or None."""
    named = os.environ.get("CXX" if device == "cpu" else "CC")
    if named:
        return shutil.which(named)
    return shutil.which("g++") if device == "cpu" else shutil.which("gcc") or shutil.which("clang")


def _why_no_code(device: str) -> str:
    """Why no code can be compiled for this device; empty if it can."""
    language, variable, package = ("C++", "CXX", "g++") if device == "cpu" else ("C", "CC", "gcc")
    if not compiler(device):
        named = os.environ.get(variable)
        what = f"${variable} is {named!r}, which is not found" if named else f"there is no {language} compiler"
        return f"{what}: install {package}, or set {variable} to a {language} compiler"
    if device != "cpu" and importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if device != "cpu" and torch.cuda.get_device_capability() < (8, 0):
        return f"{torch.cuda.get_device_name()} is older than is supported (compute capability 8.0)"
    return ""


def choose_kernels(config: Config, device: str, dtype: Dtype, log: ChoiceLog) -> Literal["pytorch", "triton"]:
    """The kernels; `auto` is triton wherever its kernels run. Raises `UserError` for triton where they do not."""
    missing = _why_no_triton(device, dtype)
    if config.kernels == "triton" and missing:
        raise UserError(f"--kernels triton: {missing}; give --kernels pytorch, or auto")
    if config.kernels != "auto":
        return config.kernels
    if missing:
        log.choose("kernels", "pytorch", missing)
        return "pytorch"
    log.choose("kernels", "triton", "fused batch-norm, attack update, augmentation and pooling")
    return "triton"


def _why_no_triton(device: str, dtype: Dtype) -> str:
    """Why the Triton kernels cannot run here; empty if they can."""
    if device == "cpu":
        return "Triton's kernels need a GPU"
    if dtype == "fp64":
        return "Triton's kernels take fp32, bf16 and fp16"
    return _why_no_code(device)


def _gpus(count: int) -> str:
    return {0: "no GPU that torch can use", 1: "1 GPU"}.get(count, f"{count} GPUs")


def _fix(count: int) -> str:
    if count:
        return f"give --gpus {count} or fewer"
    if torch.version.cuda is None:
        build = f"torch {torch.__version__} is a CPU build, install a CUDA build"
        return f"{build}, or train on the CPU (--device cpu, no --gpus)"
    return "check the driver with nvidia-smi, or train on the CPU (--device cpu, no --gpus)"
