"""A step captured in a CUDA graph, and what steps move put back."""

from collections.abc import Callable

import torch
from torch import Tensor

from fastarat.attacks.cuda_graphs import capturing
from fastarat.common.errors import WorkError, first_line
from fastarat.common.memory import memory_that_ran_out
from fastarat.data.loading.loader import Batch
from fastarat.training.step.train_step import Step, StepParts

_WARM_UP_STEPS = 3


class NotCaptured(WorkError):
    """The step runs, but no CUDA graph takes it."""


class CapturedStep:
    """A step captured in a CUDA graph at its first call: one launch replays it all.

    The metrics of a call are overwritten by the next one. `meet`: see `compiled.build_step`.
    """

    def __init__(self, parts: StepParts, step: Step, meet: Callable[[], None] | None = None):
        self.parts, self.step, self.meet = parts, step, meet
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """Train on a batch; its tensors are copied into the graph's own. Raises `WorkError` if it is not captured."""
        if self.graph is None:
            self._capture(batch)
        assert self.graph is not None
        for own, given in zip(self.batch, batch, strict=True):
            own.copy_(given)
        self.graph.replay()
        return self.metrics

    def close(self) -> None:
        """Give up the graph."""
        if self.graph is not None:
            self.graph.reset()
        self.graph = None

    def _capture(self, batch: Batch) -> None:
        self.batch = Batch(*(tensor.clone() for tensor in batch))
        # What is compiled, tuned or allocated at first use must be so before the capture; then all that
        # these steps moved is put back.
        put_back = remembered(self.parts)
        here, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(here)
        try:
            with torch.cuda.stream(side):
                for _ in range(_WARM_UP_STEPS):
                    self.step(self.batch)
        finally:  # after a failure too all is put back, from here
            here.wait_stream(side)
        if self.meet:
            self.meet()  # a capture begins by waiting for the device, on which another one may have failed to come
        put_back()
        graph = torch.cuda.CUDAGraph()
        try:
            with capturing(graph):
                self.metrics = self.step(self.batch)
        except RuntimeError as error:
            if memory_that_ran_out(error):
                raise
            fix = "--compile compile --kernels pytorch runs it uncaptured"
            raise NotCaptured(f"the step could not be captured ({first_line(error)}); {fix}") from error
        if self.meet:
            self.meet()
        self.graph = graph


def remembered(parts: StepParts) -> Callable[[], None]:
    """What puts all that steps move back as it is now, bit by bit; torch's random state too."""
    state = state_tensors(parts)
    before = [tensor.detach().clone() for tensor in state]  # a graph would bind the parameters to a stream
    device = parts.world.device
    # Dropout draws from it.
    random, random_there = torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    @torch.no_grad()
    def put_back() -> None:
        for tensor, value in zip(state, before, strict=True):
            tensor.copy_(value)
        torch.set_rng_state(random)
        if random_there is not None:
            torch.cuda.set_rng_state(random_there, device)

    return put_back


def state_tensors(parts: StepParts) -> list[Tensor]:
    """Every tensor that a step updates in place."""
    precision = parts.precision
    buffers = (*parts.model.buffers(), *parts.method.buffers())
    factors = [] if precision.attack_factor is None else [precision.attack_factor]
    return [*parts.parameters, *parts.momenta, *buffers, precision.scale, precision.good_steps, *factors]
