"""A step that was chosen automatically gives way to the next best where it fails; each time one line is printed and
recorded.

A captured step that cannot be captured is run compiled, one that cannot be compiled, or is compiled wrong, as it is
written, and where one of Triton's kernels fails PyTorch computes in its place. What was asked for by name stays, and
its failure ends the run.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Literal

import torch
from fastarat_kernels.launch import UnsupportedInput, triton_errors
from torch import Tensor

from fastarat.common.choice_log import ChoiceLog
from fastarat.common.distributed import largest
from fastarat.common.errors import first_line
from fastarat.config.training import CompileMode
from fastarat.data.loading.loader import Batch
from fastarat.training.build import IMPLEMENTATIONS, compute_with, step_of
from fastarat.training.choices import Choices
from fastarat.training.first_step import held_against
from fastarat.training.state import Training
from fastarat.training.step.compiled import NotCaptured, Step, StepBySize, remembered

Way = tuple[CompileMode, Literal["triton", "pytorch"]]
WAYS: tuple[Way, ...] = tuple(product(("graph", "compile", "eager"), ("triton", "pytorch")))
"""how the step runs and who computes, each better than those after it"""


class FallbackStep:
    """The step of a training, which falls back where its first call with images of a size fails.

    What a failed call moved is put back, bit by bit; all processes fall back together. `fell_back` is told the choices
    that it then takes, and a failure counts as the end where `is_stopped`: Ctrl-C reaches compilers too.
    """

    def __init__(self, training: Training, step: Step, choices: Choices, log: ChoiceLog):
        self.training, self.step, self.choices, self.log = training, step, choices, log
        self.sizes: set[torch.Size] = set()
        self.fell_back: Callable[[Choices], None] = lambda choices: None
        self.is_stopped: Callable[[], bool] = lambda: False

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """Train on a batch. Raises what the step raises where there is nothing to fall back to."""
        if batch.x.shape in self.sizes:
            return self.step(batch)
        while True:
            put_back = remembered(self.training.parts)
            metrics, way, why = self._tried(batch)
            # All go on alike, by the worst that any of them has to take.
            (worst,) = largest((way,), self.training.parts.world)
            if metrics is not None and worst == way:
                self.sizes.add(batch.x.shape)
                return metrics
            put_back()
            self._take(worst, why or "another process could not take the step")

    def close(self) -> None:
        """Give up what was captured."""
        if isinstance(self.step, StepBySize):
            self.step.close()

    def _tried(self, batch: Batch) -> tuple[dict[str, Tensor] | None, int, str]:
        """The step's metrics, if it can be taken; the way to go, by its place among `WAYS`; and why, if it is another.

        Raises the error for which there is none.
        """
        try:
            metrics = self._first(batch)
            if batch.x.is_cuda:
                torch.cuda.synchronize(batch.x.device)  # a kernel that fails is known only then
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            way = self._next_best(error)
            if way is None:
                raise
            return None, WAYS.index(way), first_line(error)
        return metrics, WAYS.index((self.choices.compile, self.choices.kernels)), ""

    def _first(self, batch: Batch) -> dict[str, Tensor]:
        """The first step with images of a size. On a CPU compiled code is held against the eager step: every machine
        has a C++ compiler of its own."""
        if self.choices.compile != "compile" or batch.x.is_cuda:
            return self.step(batch)
        written = step_of(self.training, replace(self.choices, compile="eager"))
        return held_against(written, self.step, self.training.parts, batch)

    def _next_best(self, error: Exception) -> Way | None:
        """The way to go after this error; None if there is none."""
        config, mode, kernels = self.training.config, self.choices.compile, self.choices.kernels
        of_kernel = isinstance(error, (UnsupportedInput, *triton_errors())) or "Triton Error" in str(error)
        if of_kernel and kernels == "triton" and config.kernels == "auto":
            return mode, "pytorch"
        if config.compile != "auto" or mode == "eager" or self.is_stopped():
            return None
        # Outside a graph the host would start Triton's kernels one by one.
        kernels = "pytorch" if config.kernels == "auto" else kernels
        return "compile" if isinstance(error, NotCaptured) else "eager", kernels

    def _take(self, worst: int, why: str) -> None:
        """Go on by the ways' `worst`."""
        self.close()
        (mode, kernels), before = WAYS[worst], self.choices
        self.choices = replace(before, compile=mode, kernels=kernels)
        if mode != before.compile:
            self.log.choose("compile", mode, why)
        if kernels != before.kernels:
            self.log.choose("kernels", kernels, why if mode == before.compile else "the step is not captured")
        compute_with(self.training, IMPLEMENTATIONS[kernels])
        self.step = step_of(self.training, self.choices)
        self.fell_back(self.choices)
