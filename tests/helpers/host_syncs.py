"""What makes the host wait for the device, found without one; and epochs of the real loop to look for it in."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from fastarat_kernels.implementations import PYTORCH, Kernels
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from fastarat.common.distributed import World
from fastarat.config import Config
from fastarat.config.training import CompileMode
from fastarat.data.open import open_dataset
from fastarat.runs.run import Run
from fastarat.training.build import build_training
from fastarat.training.compiling.compiled import build_step
from fastarat.training.loop import Loop
from fastarat.training.step.precision import Dtype

# Operations whose result, or its shape, the host has to read.
READS = {
    *("_local_scalar_dense", "is_nonzero", "item", "equal", "allclose"),
    *("nonzero", "masked_select", "unique_consecutive", "unique_dim", "_unique", "_unique2", "bincount"),
}
# Copies to the host.
COPIES = {"cpu", "tolist", "numpy", "item", "__array__"}


class HostSync(AssertionError):
    """The host would have waited for the device."""


class NoHostSync(TorchFunctionMode):
    """Under this, what would make the host wait on a GPU raises `HostSync`, on any device; but `allowed` times."""

    def __init__(self, allowed: int = 0):
        super().__init__()
        self.left, self.operations = allowed, _Operations(self)

    def found(self, what: str) -> None:
        """Count a wait, and raise if it is one too many."""
        self.left -= 1
        if self.left < 0:
            raise HostSync(what)

    def __enter__(self) -> "NoHostSync":
        self.operations.__enter__()
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self.operations.__exit__(*exception)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        to_host = name == "to" and any(str(given) == "cpu" for given in (*args[1:], *(kwargs or {}).values()))
        if to_host or name in COPIES:
            self.found(name)
        return func(*args, **(kwargs or {}))


class _Operations(TorchDispatchMode):
    """The same for what PyTorch dispatches, the backward pass included."""

    def __init__(self, outer: NoHostSync):
        super().__init__()
        self.outer = outer

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        repeats = name == "repeat_interleave" and "output_size" not in (kwargs or {})
        # `lift_fresh`: a tensor made of the host's numbers, which is copied to the device.
        if by_mask or repeats or name in READS or name == "lift_fresh":
            self.outer.found(str(func))
        return func(*args, **(kwargs or {}))


class QuietLoop(Loop):
    """The loop without log lines, checkpoints and what ends an epoch: it may train for ever without a wait."""

    def __init__(
        self,
        config: Config,
        mode: CompileMode = "eager",
        dtype: Dtype = "fp32",
        device: str = "cpu",
        kernels: Kernels = PYTORCH,
    ):
        training = build_training(
            config, open_dataset(config.data), World(torch.device(device)), dtype=dtype, kernels=kernels
        )
        step = build_step(training.parts, training.controls, mode, unroll=True)
        super().__init__(training, Run(Path("nowhere")), step, compiles=False)
        nothing = lambda amount: None  # noqa: E731
        quiet = SimpleNamespace(due=lambda: False, counter=lambda total, text: nothing)
        self.display = self.evaluations.display = quiet  # type: ignore[assignment]
        self.last_save = float("inf")

    def _end_epoch(self) -> None:
        self.training.epoch += 1

    def epochs(self, num: int) -> Tensor:
        """Train for so many epochs; returns the sums of the last one's metrics."""
        for _ in range(num):
            self._epoch()
        return self.training.totals
