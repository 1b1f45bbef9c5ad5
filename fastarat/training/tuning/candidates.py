"""The forms that a step can take on this machine: what is tried, and what may be taken up from an earlier trial."""

import os
from dataclasses import replace
from itertools import product

import torch

from fastarat.common.choice_log import ChoiceLog
from fastarat.common.errors import UserError
from fastarat.common.processes import num_cores
from fastarat.config import Config
from fastarat.training.choices import Choices, choose

STEM_CHANNELS = 8
"""products of bf16 on tensor cores want channels by the eight"""
_GRAPHS = {None: "", True: ", one graph", False: ", three graphs"}


def candidates(config: Config, device: str) -> list[Choices]:
    """Every form that the settings leave open and that can run here, the plainest first.

    What is given by name is no longer open. The number format is open where the recipe leaves it so: on a CPU float32
    and what `auto` takes, on a GPU the latter alone. Raises `UserError` if what is given by name cannot run here.
    """
    quiet = ChoiceLog(quiet=True)
    chosen = choose(config, quiet, device).dtype
    dtypes = dict.fromkeys(("fp32", chosen) if device == "cpu" and config.dtype == "auto" else (chosen,))
    kernels = ("pytorch", "triton") if config.kernels == "auto" else (config.kernels,)
    modes = ("eager", "compile", "graph") if config.compile == "auto" else (config.compile,)
    found = []
    for dtype, kernel, mode in product(dtypes, kernels, modes):
        try:
            form = choose(replace(config, dtype=dtype, kernels=kernel, compile=mode), quiet, device)
        except UserError:  # it cannot run here
            continue
        found += [form] if mode == "eager" else [replace(form, unroll=unroll) for unroll in (True, False)]
    return found


def other_threads(device: str) -> list[int]:
    """Numbers of threads that are worth a trial beside the one there is: half and twice as many, within the cores.

    None on a GPU, and where $OMP_NUM_THREADS gives the number.
    """
    if device != "cpu" or "OMP_NUM_THREADS" in os.environ:
        return []
    now, cores = torch.get_num_threads(), num_cores()
    return [number for number in (now // 2, 2 * now) if 1 <= number <= cores]


def other_stems(device: str) -> list[int]:
    """How many channels the first convolution may compute with beside those of the images: a CPU gains nothing."""
    return [STEM_CHANNELS] if device == "cuda" else []


def open_forms(config: Config, device: str) -> list[Choices]:
    """Candidates with every number of threads and every stem: what a training may take of what was tried."""
    more = list(product((None, *other_threads(device)), (None, *other_stems(device))))
    forms = candidates(config, device)
    return [replace(form, threads=number, stem_channels=channels) for form in forms for number, channels in more]


def described(form: Choices) -> str:
    """A form in words: `bf16, pytorch, compile, one graph, 2 threads`."""
    threads = f", threads: {form.threads}" if form.threads else ""
    stem = f", stem channels: {form.stem_channels}" if form.stem_channels else ""
    return f"{form.dtype}, {form.computed_by}, {form.compile}{_GRAPHS[form.unroll]}{threads}{stem}"
