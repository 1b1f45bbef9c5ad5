"""In a training step each kernel's launcher takes what its operator is given, and starts as often as was counted."""

import importlib.util
import pkgutil
from typing import Any

import fastarat_kernels
import pytest
import torch
from fastarat_kernels.implementations import TRITON
from fastarat_kernels.launch import recording
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastarat.config.method import ARATConfig
from fastarat.config.recipes import recipe
from fastarat.data.loading.loader import Batch
from fastarat.methods.registry import build_method
from fastarat.models.registry import build_model
from fastarat.training.step.precision import Dtype
from fastarat.training.step.train_step import Controls, train_step
from tests.helpers.step_parts import parts_of
from tests.simulated_gpu.step_table import rows

PACKAGES = [package.name for package in pkgutil.iter_modules(fastarat_kernels.__path__) if package.ispkg]


def launcher_of(name: str) -> Any:
    """What an operator runs on a GPU; None for one of PyTorch's operators."""
    modules = (f"fastarat_kernels.{package}.triton" for package in PACKAGES)
    found = (getattr(importlib.import_module(module), name, None) for module in modules if _is_there(module))
    return next(filter(None, found), None)


def _is_there(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def images_of(values: Any) -> list[tuple[torch.Size, torch.dtype, tuple[int, ...]]]:
    """Shape, dtype and strides of the tensors [N, C, H, W]."""
    tensors = [values] if isinstance(values, Tensor) else values or ()
    return [(x.shape, x.dtype, x.stride()) for x in tensors if x.ndim == 4]


class Launched(TorchDispatchMode):
    """Hands the arguments of each of our operators to its launcher too, which starts nothing here."""

    def __init__(self) -> None:
        super().__init__()
        self.launches = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        space, _, name = func._schema.name.partition("::")
        launcher = launcher_of(name) if space == "fastarat" else None
        if launcher is not None:
            with recording() as launches:
                given = launcher(*args, **(kwargs or {}))
            if not name.endswith("partials"):  # how many there are, a launcher decides
                assert images_of(given) == images_of(out), name
            self.launches += len(launches)
        return out


def launches_of(name: str, size: int, channels: int, dtype: Dtype = "bf16") -> int:
    """How many kernels a recipe's step on four images starts."""
    config = recipe(name)
    batch_norm = config.method.batch_norm if isinstance(config.method, ARATConfig) else "shared"
    net = build_model(config.model.name, 10, channels, batch_norm)
    method = build_method(config.method, net, (channels, size, size))
    net, method = (part.to(memory_format=torch.channels_last).train() for part in (net, method))
    parts = parts_of(net, method, config.attack, dtype, kernels=TRITON, optimizer=config.optimizer)
    x = torch.rand(4, channels, size, size).contiguous(memory_format=torch.channels_last)
    with Launched() as seen:
        train_step(parts, Batch(x, torch.arange(4), torch.arange(4)), Controls.of(parts, learning_rate=0.1))
    return seen.launches


@pytest.mark.parametrize("name", ["cifar10-tiny-at", "cifar10-tiny-arat", "cifar10-tiny-trades"])
def test_a_step_starts_the_kernels_that_the_simulated_gpu_counted(name):
    assert launches_of(name, 32, 3) == rows()[f"{name}:eager:triton"]["families"]["fastarat"]


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize("method", ["arat", "mart", "lbgat", "n-fgsm"])
def test_every_launcher_takes_what_it_is_given(method, dtype):
    assert launches_of(f"digits-{method}", 8, 1, dtype) > 20
