"""What a machine needs besides torch: a driver that torch can use, and what compiles code for its device."""

import importlib.util
import os
import re
import shutil
import subprocess
import sysconfig
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from fastarat_kernels.implementations import TRITON

from fastarat.common.errors import first_line
from fastarat.training.compiling.code_folder import why_no_folder

DRIVERS = (
    (Path("/dev/nvidiactl"),),
    (Path("/dev/dxg"), Path("/usr/lib/wsl/lib/libcuda.so.1")),  # WSL2, which has the driver of Windows
)
"""what is there, all of a row, where an NVIDIA driver is loaded and its devices may be used"""
DRIVER_VERSION = Path("/proc/driver/nvidia/version")
_LIBRARY = """#include <Python.h>
#include <omp.h>
extern "C" int threads() { return omp_get_max_threads(); }
"""
"""in C++: what the code of compiled steps includes and links too"""


def compiler(device: str) -> str | None:
    """What compiled steps need: on a CPU a C++ compiler ($CXX, else g++); on a GPU a C compiler ($CC, else gcc or
    clang), with which Triton builds what starts its kernels. The path, or None."""
    named = os.environ.get("CXX" if device == "cpu" else "CC")
    if named:
        return shutil.which(named)
    return shutil.which("g++") if device == "cpu" else shutil.which("gcc") or shutil.which("clang")


def why_no_code(device: str) -> str:
    """Why no code can be compiled for this device, or none kept where the user wants it, with what mends it; empty if
    it can. A few lines are compiled, and on a GPU a kernel runs."""
    if reason := why_no_folder():
        return reason
    language, variable, package = ("C++", "CXX", "g++") if device == "cpu" else ("C", "CC", "gcc")
    path = compiler(device)
    if not path:
        named = os.environ.get(variable)
        what = f"${variable} is {named!r}, which is not found" if named else f"there is no {language} compiler"
        return f"{what}: install {package}, or set {variable} to a {language} compiler"
    return _why_no_headers() or _why_no_library(path) if device == "cpu" else _why_no_triton_code()


def _why_no_triton_code() -> str:
    """Why Triton cannot build what starts its kernels."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if torch.cuda.get_device_capability() < (8, 0):
        return f"{torch.cuda.get_device_name()} is older than is supported (compute capability 8.0)"
    if reason := _why_no_headers():
        return reason
    if not _libcuda():
        return "Triton links libcuda.so.1, which the linker does not list: run /sbin/ldconfig as root"
    return _why_no_kernel()


def _why_no_headers() -> str:
    """Why what torch and Triton write, which Python loads, cannot be compiled."""
    if (python_headers() / "Python.h").exists():
        return ""
    return f"compiled code includes Python.h, which is not in {python_headers()}: install python3-dev"


@cache
def _why_no_library(path: str) -> str:
    """Why this C++ compiler builds no library of a few lines; empty if it does. Takes a fifth of a second."""
    with TemporaryDirectory() as folder:
        library = Path(folder, "library.so")
        flags = ["-x", "c++", "-shared", "-fPIC", "-fopenmp", "-I", str(python_headers()), "-o", str(library), "-"]
        try:
            built = subprocess.run([path, *flags], input=_LIBRARY, capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.SubprocessError) as error:
            return f"{path} cannot be run ({first_line(error)}): set CXX to a C++ compiler"
        if library.exists():
            return ""
    said = next((line for line in built.stderr.splitlines() if "error" in line), f"it ended with {built.returncode}")
    return f"{path} builds no library with Python.h and OpenMP ({said}): install g++, or set CXX to a C++ compiler"


@cache
def _why_no_kernel() -> str:
    """Why small kernels do not run on this GPU; empty if they do. Takes seconds where none was ever built."""
    try:
        images = torch.ones(1, 16, 2, 2, device="cuda").contiguous(memory_format=torch.channels_last)
        TRITON.pooled_features(images)
        # Loaders start this one, outside the steps that fall back.
        pixels, index = images.permute(0, 2, 3, 1).byte(), torch.arange(1, device=images.device)
        TRITON.augment(pixels, index, 1, 255, torch.float32, crop_padding=1, flip=True, seed=0)
        torch.cuda.synchronize()
    except Exception as error:  # its compilers, its driver, its libraries, its memory: each fails in a way of its own
        return f"Triton cannot run a kernel here ({first_line(error)})"
    return ""


def python_headers() -> Path:
    """The folder in which torch and Triton look for Python.h; Debian's own scheme names one that its packages do not
    fill."""
    scheme = sysconfig.get_default_scheme()
    return Path(sysconfig.get_paths("posix_prefix" if scheme == "posix_local" else scheme)["include"])


def _libcuda() -> bool:
    """Whether Triton will find libcuda.so.1, by the places in which it looks."""
    folders = [os.environ.get("TRITON_LIBCUDA_PATH", ""), *os.environ.get("LD_LIBRARY_PATH", "").split(":")]
    if any(folder and Path(folder, "libcuda.so.1").exists() for folder in folders):
        return True
    try:
        listed = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return False
    return "libcuda.so.1" in listed


def why_no_gpu() -> str:
    """Why torch uses no GPU although this machine's NVIDIA driver offers one, with what mends it; empty where there is
    no driver, or where the GPUs were hidden on purpose."""
    has_driver = any(all(path.exists() for path in row) for row in DRIVERS)
    if not has_driver or torch.cuda.is_available() or os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return ""
    found = re.search(r"\s(\d+\.\d+(\.\d+)?)\s", DRIVER_VERSION.read_text()) if DRIVER_VERSION.exists() else None
    driver = f"NVIDIA driver {found[1]}" if found else "an NVIDIA driver"
    if torch.version.cuda is None:
        return f"there is {driver}, but torch {torch.__version__} is a CPU build: install a CUDA build"
    newer = f"install a newer driver, or a torch build for an older CUDA than {torch.version.cuda}"
    return f"torch {torch.__version__} cannot use a GPU with {driver}: {newer}"
