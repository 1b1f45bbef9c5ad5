"""A step that was chosen automatically gives way to the next best where it fails; each time one line is printed and
recorded.

A captured step that cannot be captured is run compiled; one that cannot be compiled, or is compiled wrong or to no
gain, as it is written; and where one of Triton's kernels fails PyTorch computes in its place. What was asked for by
name stays, and its failure ends the run.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from fastarat_kernels.launch import UnsupportedInput, is_of_triton
from torch import Tensor

from fastarat.common.choice_log import ChoiceLog
from fastarat.common.distributed import decided, gathered, said_of_others
from fastarat.common.errors import first_line
from fastarat.common.memory import memory_that_ran_out
from fastarat.data.loading.loader import Batch
from fastarat.training.build import compute_plainly, kernels_of, step_of
from fastarat.training.choices import WAYS, Choices, Way
from fastarat.training.compiling.captured import NotCaptured, remembered
from fastarat.training.compiling.compile_times import keep_gain, step_key
from fastarat.training.compiling.compiled import NotCompiled, StepBySize
from fastarat.training.compiling.first_step import gain_in_turns, held_against
from fastarat.training.compiling.together import LeftBehind, NoWayOn, agreed, meet
from fastarat.training.state import Training
from fastarat.training.step.train_step import Step

BEFORE_RUNNING = (NotCaptured, NotCompiled)
"""errors after which no process waits for another one: nothing has run, or all have come as far"""


class Outcome(NamedTuple):
    """How the first call of a step with images of a size went."""

    metrics: dict[str, Tensor] | None
    """None where a process cannot take the step"""
    level: int
    """at which all processes go on: a place among `WAYS`"""
    reason: str = ""
    """why this process cannot take the step; empty where it is another one"""


class FallbackStep:
    """The step of a training, which falls back where its first call with images of a size fails.

    What a failed call moved is put back, bit by bit; all processes fall back together. With `has_to_gain` compiled code
    that is no faster on a CPU has failed: a run that goes on, or follows `tune`, takes what was chosen. `fell_back` is
    told the choices that it then takes, and a failure counts as the end where `is_stopped`: Ctrl-C reaches compilers
    too.
    """

    def __init__(self, training: Training, step: Step, choices: Choices, log: ChoiceLog, *, has_to_gain: bool):
        self.training, self.step, self.choices, self.log = training, step, choices, log
        self.has_to_gain = has_to_gain
        self.sizes: set[torch.Size] = set()
        self.fell_back: Callable[[Choices], None] = lambda choices: None
        self.is_stopped: Callable[[], bool] = lambda: False

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """Train on a batch. Raises what the step raises where there is nothing to fall back to."""
        if batch.x.shape in self.sizes:
            return self.step(batch)
        while True:
            put_back = remembered(self.training.parts)
            outcome = self._tried(batch)
            if outcome.metrics is not None:
                self.sizes.add(batch.x.shape)
                return outcome.metrics
            put_back()
            self._switch_to(outcome.level, self._reason_by_process(outcome.reason))

    def close(self) -> None:
        """Give up what was captured."""
        if isinstance(self.step, StepBySize):
            self.step.close()

    def _tried(self, batch: Batch) -> Outcome:
        """Take the step, and hear whether all processes can. Raises the error after which there is no way on."""
        world = self.training.parts.world
        try:
            metrics = self._first(batch)
            meet(self.choices.level, world)
            self._check_gain(batch)
        except NoWayOn:
            raise
        except LeftBehind as error:
            return Outcome(None, error.level)
        except Exception as error:
            way = None if memory_that_ran_out(error) else self._next_best(error)
            if way is None or said_of_others(str(error), world):  # the step of one that waited has not failed
                raise
            level = self._agreed_level(WAYS.index(way), error, on_gpu=batch.x.is_cuda)
            return Outcome(None, level, first_line(error))
        if batch.x.is_cuda:
            torch.cuda.synchronize(batch.x.device)  # a kernel that fails here leaves no device to go on with
        return Outcome(metrics, self.choices.level)

    def _agreed_level(self, level: int, error: Exception, *, on_gpu: bool) -> int:
        """The plainest level that any process has to take after this `error`. The others are at a meeting, or will be:
        all go on alike. Raises the error where they cannot."""
        world, failed = self.training.parts.world, not isinstance(error, BEFORE_RUNNING)
        # On a GPU the others' hosts go on to a meeting; on a CPU they wait in a collective of the step.
        if failed and world.control is not None and not on_gpu:
            raise error
        try:
            return agreed(level, world, failed=failed)
        except NoWayOn:
            raise error from None

    def _reason_by_process(self, own: str) -> str:
        """Why they go on another way: for this process's `own` reason, or for that of another, which is named."""
        reasons = gathered(own, self.training.parts.world)
        return own or next(f"process {rank}: {reason}" for rank, reason in enumerate(reasons) if reason)

    def _first(self, batch: Batch) -> dict[str, Tensor]:
        """The first step with images of a size. On a CPU compiled code is held against the eager step: every machine
        has a C++ compiler of its own."""
        if self.choices.compile != "compile" or batch.x.is_cuda:
            return self.step(batch)
        return held_against(self._written(), self.step, self.training, batch)

    def _check_gain(self, batch: Batch) -> None:
        """Remember what compiled code gains that has to. Raises `NotCompiled`, in all processes, if that is nothing;
        all of them take the same steps for it."""
        parts, config = self.training.parts, self.training.config
        if not self.has_to_gain or self.choices.compile != "compile":
            return
        gain = gain_in_turns(self._written(), self.step, parts, batch)
        gain = decided(lambda: gain, parts.world)
        if parts.world.is_main:
            keep_gain(step_key(parts, config, (batch.x.shape[2], batch.x.shape[3])), gain)
        if gain < 1:
            raise NotCompiled(f"a compiled step is {gain:.2f} times as fast as an eager one here")

    def _written(self) -> Step:
        return step_of(self.training, replace(self.choices, compile="eager"))

    def _next_best(self, error: Exception) -> Way | None:
        """The way to go after this error; None if there is none."""
        config, mode, kernels = self.training.config, self.choices.compile, self.choices.kernels
        of_kernel = isinstance(error, UnsupportedInput) or is_of_triton(error)
        if of_kernel and kernels == "triton" and config.kernels == "auto":
            return mode, "pytorch"
        if config.compile != "auto" or mode == "eager" or self.is_stopped():
            return None
        # Outside a graph the host would start Triton's kernels one by one.
        kernels = "pytorch" if config.kernels == "auto" else kernels
        return "compile" if isinstance(error, NotCaptured) else "eager", kernels

    def _switch_to(self, level: int, why: str) -> None:
        """Go on at `level`."""
        self.close()
        (mode, kernels), before = WAYS[level], self.choices
        # Kernels are left out, and stems padded, of what `auto` chose alone, and that gives way as a whole.
        self.choices = replace(before, compile=mode, kernels=kernels, without=(), stem_channels=None)
        if mode != before.compile:
            self.log.choose("compile", mode, why)
        if kernels != before.kernels:
            self.log.choose("kernels", kernels, why if mode == before.compile else "the step is not captured")
        if before.stem_channels:
            self.log.choose("stem channels", "the images'", "what was tuned gives way as a whole")
        compute_plainly(self.training, kernels_of(self.choices))
        self.step = step_of(self.training, self.choices)
        self.fell_back(self.choices)
