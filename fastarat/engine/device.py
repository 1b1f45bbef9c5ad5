"""Which device, number format, kernels and kind of step a run uses, checked against what is there."""

import importlib.util
import os
import shutil

import torch
from fastarat_kernels.implementations import PYTORCH, TRITON, Kernels

from fastarat.config import Config
from fastarat.engine.precision import Dtype
from fastarat.engine.settings import CompileMode
from fastarat.errors import UserError
from fastarat.record import Record


def choose_device(config: Config, record: Record) -> str:
    """`cpu` or `cuda`. Raises `UserError` where more is asked for than there is."""
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if config.gpus > num_gpus:
        raise UserError(f"--gpus {config.gpus}: this machine has {_gpus(num_gpus)}. {_fix(num_gpus)}")
    if config.device == "cuda" and num_gpus == 0:
        raise UserError(f"--device cuda: this machine has {_gpus(0)}. {_fix(0)}")
    if config.procs and config.device != "cuda":
        return "cpu"
    if config.device != "auto":
        return config.device
    if num_gpus:
        return record.choose("device", "cuda", torch.cuda.get_device_name())
    return record.choose("device", "cpu", "torch sees no GPU")


def choose_dtype(config: Config, device: str, record: Record) -> Dtype:
    """The number format; `auto` is bf16 on a GPU that has it, else fp16 there, and fp32 on a CPU."""
    if config.dtype != "auto":
        return config.dtype
    if device == "cpu":
        record.choose("dtype", "fp32", "the CPU's fastest exact format")
        return "fp32"
    if torch.cuda.is_bf16_supported(including_emulation=False):
        record.choose("dtype", "bf16", "the GPU has it")
        return "bf16"
    record.choose("dtype", "fp16", "the GPU has no bf16")
    return "fp16"


def choose_compile(config: Config, device: str, record: Record) -> CompileMode:
    """How the step runs; `auto` is graph on a GPU, and eager on a CPU."""
    if config.compile == "graph" and device == "cpu":
        raise UserError("--compile graph captures a CUDA graph, and this run is on the CPU: give compile or eager")
    if config.compile == "compile" and device == "cpu" and cpp_compiler() is None:
        raise UserError(
            "--compile compile on the CPU needs a C++ compiler: install g++ (or set CXX), or --compile eager"
        )
    if config.compile != "auto":
        return config.compile
    if device == "cpu":
        record.choose("compile", "eager", "on a CPU compiling takes longer than a short run gains")
        return "eager"
    record.choose("compile", "graph", "one launch a step")
    return "graph"


def cpp_compiler() -> str | None:
    """The C++ compiler that torch.compile finds for the CPU: $CXX, else g++."""
    return shutil.which(os.environ.get("CXX") or "g++")


def choose_kernels(config: Config, device: str, dtype: Dtype, record: Record) -> Kernels:
    """The kernels; `auto` is triton wherever its kernels run."""
    missing = _why_no_triton(device, dtype)
    if config.kernels == "triton" and missing:
        raise UserError(f"--kernels triton: {missing}. Give --kernels pytorch, or auto.")
    if config.kernels == "auto":
        name = "pytorch" if missing else "triton"
        record.choose("kernels", name, missing or "fused batch-norm, attack update, augmentation and pooling")
        return PYTORCH if missing else TRITON
    return TRITON if config.kernels == "triton" else PYTORCH


def _why_no_triton(device: str, dtype: Dtype) -> str:
    """Why the Triton kernels cannot run here; empty if they can."""
    if device == "cpu":
        return "Triton's kernels need a GPU"
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if dtype == "fp64":
        return "Triton's kernels take fp32, bf16 and fp16"
    if torch.cuda.get_device_capability() < (8, 0):
        return f"{torch.cuda.get_device_name()} is older than Triton's kernels are built for (compute capability 8.0)"
    return ""


def _gpus(count: int) -> str:
    return {0: "no GPU that torch can use", 1: "1 GPU"}.get(count, f"{count} GPUs")


def _fix(count: int) -> str:
    if count:
        return f"Give --gpus {count} or fewer."
    if torch.version.cuda is None:
        build = f"torch {torch.__version__} is a CPU build: install a CUDA build"
        return f"{build}, or train on the CPU (--device cpu, no --gpus)."
    return "Check the driver with nvidia-smi, or train on the CPU (--device cpu, no --gpus)."
