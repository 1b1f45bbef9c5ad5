"""What this machine has: versions, GPUs, data, optional packages; each with what it is good for."""

import ctypes
import importlib.util
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from fastarat.common.environment import environment
from fastarat.common.errors import UserError, first_line
from fastarat.data.formats.find import KNOWN, names_under_root
from fastarat.data.images.cache import data_root
from fastarat.data.images.dataset import Images
from fastarat.training.compiling.toolchain import compiler, why_no_code, why_no_gpu

OPTIONAL = {
    "ffcv": "feeds trainings from a .beton (extra: ffcv)",
    "dali": "feeds trainings from image folders and shards, decoded on the CPU or a GPU (extra: dali, or dali12)",
    "triton": "fused kernels and compiled steps on a GPU",
    "tensorboard": "TensorBoard events of runs (extra: tensorboard)",
    "wandb": "numbers of runs in Weights & Biases (extra: wandb)",
    "mlflow": "numbers of runs in MLflow (extra: mlflow)",
    "pynvml": "the energy of GPUs in a run's metrics (extra: energy)",
    "onnx": "export to ONNX (extra: onnx)",
    "submitit": "trainings as Slurm jobs (extra: slurm)",
    "pyautoattack": "the AutoAttack of others, to compare with ours (extra: pyautoattack)",
    "apex": "a row of the kernel benchmark; NVIDIA's own, from its images or source",
}


@dataclass(frozen=True)
class Finding:
    """One row: what, whether it is there, and what that means."""

    subject: str
    state: Literal["ok", "missing", "broken"]
    detail: str


def findings() -> list[Finding]:
    """Everything worth knowing before a run."""
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    steps = map(_training, devices)
    return [*_software(), *steps, *_gpus(), _compiled_steps(devices[-1]), *map(_optional, OPTIONAL), _data(), _runs()]


def _software() -> list[Finding]:
    facts = environment()
    threads = f"{facts['threads']} thread{'s' if facts['threads'] > 1 else ''}"
    return [
        Finding("fastarat", "ok", f"{facts['fastarat']}, commit {facts['commit'] or 'unknown'}"),
        Finding("python", "ok", str(facts["python"])),
        Finding("torch", "ok", f"{facts['torch']}, {threads}"),
    ]


def _training(device: str) -> Finding:
    """One real step of the smallest recipe on random images, as a run there takes it: does the whole path run?"""
    from dataclasses import replace

    from fastarat.common.choice_log import ChoiceLog
    from fastarat.common.distributed import World
    from fastarat.config.recipes import DEFAULT, recipe
    from fastarat.data.images.dataset import Dataset
    from fastarat.data.loading.choose import Opened
    from fastarat.training.build import start_training
    from fastarat.training.choices import choose

    rng = np.random.default_rng(0)
    images = Images(rng.integers(0, 17, (8, 8, 8, 1), dtype=np.uint8), np.arange(8, dtype=np.int64))
    dataset = Dataset("random", images, images, tuple("01234567"), 16, "")
    config = replace(recipe(DEFAULT), batch=8, device=device)
    try:
        choices, opened = choose(config, ChoiceLog(quiet=True)), Opened(dataset, "resident", "the only one")
        training, step = start_training(config, opened, choices, World(torch.device(device)))
        metrics = training.advance(step, next(iter(training.loader.batches(1))))
        finite = _is_finite(metrics["loss"])
    except Exception as error:  # what a GPU's driver, compiler or kernels may raise is without end
        return Finding(f"training step on {device}", "broken", first_line(error))
    how = f"{DEFAULT}: {choices.dtype}, {choices.compile}, {choices.kernels} kernels"
    return Finding(f"training step on {device}", "ok" if finite else "broken", how)


def _is_finite(loss: torch.Tensor) -> bool:
    """Waits for the device: what its kernels do wrong comes to light here."""
    return bool(loss.isfinite())


def _gpus() -> list[Finding]:
    if not torch.cuda.is_available():
        if reason := why_no_gpu():
            return [Finding("GPU", "broken", reason)]
        build = "a CPU build of torch" if torch.version.cuda is None else "no driver or no device"
        return [Finding("GPU", "missing", f"{build}: runs go to the CPU")]
    found = []
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        memory = properties.total_memory / 2**30
        bf16 = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no bf16: fp16"
        found.append(Finding(f"GPU {i}", "ok", f"{properties.name}, {memory:.0f} GiB, {bf16}"))
    return found


def _compiled_steps(device: str) -> Finding:
    """What --compile needs, tried."""
    reason = why_no_code(device)
    return Finding("compiled steps", "missing" if reason else "ok", reason or f"by {compiler(device)}")


def _optional(name: str) -> Finding:
    """Whether a package is there: without importing it, which takes seconds for some and changes torch for FFCV."""
    places = _places("nvidia.dali" if name == "dali" else name)
    if name == "ffcv" and (problem := _unloadable(places)):
        return Finding(name, "broken", f"{problem}: install it again, it was compiled for other libraries")
    return Finding(name, "ok" if places else "missing", OPTIONAL[name])


def _places(package: str) -> list[Path]:
    """The package's folders, or a single module's file; none where it is not installed."""
    try:
        found = importlib.util.find_spec(package)
    except ModuleNotFoundError:  # not even the package round it
        return []
    if found is None:
        return []
    return [Path(place) for place in found.submodule_search_locations or [found.origin or ""]]


def _unloadable(places: list[Path]) -> str:
    """What the loader of compiled modules says of those in a folder; nothing if all are loaded."""
    try:
        for module in (path for place in places for path in place.glob("*.so")):
            ctypes.CDLL(str(module))
    except OSError as error:
        return str(error)
    return ""


def _data() -> Finding:
    try:
        root = data_root()
    except UserError as error:
        return Finding("data", "missing", str(error))
    names = [*KNOWN, *names_under_root()] if root.is_dir() else list(KNOWN)
    there = f"{root} ($FASTARAT_DATA); known: {', '.join(dict.fromkeys(names))}"
    return Finding("data", "ok" if root.is_dir() else "missing", there)


def _runs() -> Finding:
    """Whether runs can be written where they go by default."""
    place = Path("runs")
    if os.path.lexists(place) and not place.is_dir():
        return Finding("runs/", "broken", "runs is no folder: move it away, or give --out")
    place = place if place.is_dir() else Path()
    writable = os.access(place, os.W_OK)
    free = shutil.disk_usage(place).free / 2**30
    return Finding("runs/", "ok" if writable else "broken", f"{free:.0f} GiB free" if writable else "not writable")
