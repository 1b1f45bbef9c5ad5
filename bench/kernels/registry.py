"""The kernels that are measured: those of which a file here, by the kernel's name, has the `cases`."""

from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from fastarat_kernels.registry import KERNELS

if TYPE_CHECKING:
    import torch

    from bench.kernels.cases import Case, Scale


def measured() -> list[str]:
    """Their names, the most important first."""
    return [name for name in KERNELS if find_spec(f"bench.kernels.{name}")]


def cases_of(name: str) -> "Callable[[Scale, torch.dtype], Iterator[Case]]":
    """What makes the cases of a kernel, for sizes and a dtype."""
    return import_module(f"bench.kernels.{name}").cases
