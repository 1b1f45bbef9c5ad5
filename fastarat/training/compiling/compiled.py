"""The training step as a function of a batch: eager, compiled, or compiled and captured in a CUDA graph.

One full graph holds the whole step, every step of the attack unrolled, where that compiles in bearable time;
else each of its three stages is a full graph, and the attack's, compiled once, runs for every step. A CUDA
graph captures the whole step either way: one launch from the host. Images of another size have a step of their own,
made when the first batch of them comes, in the place of the one before.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from fastarat.common.errors import WorkError
from fastarat.common.memory import memory_that_ran_out
from fastarat.config.training import CompileMode
from fastarat.data.loading.loader import Batch
from fastarat.training.compiling.captured import CapturedStep
from fastarat.training.compiling.compiler_options import compiler_options, kept_options
from fastarat.training.compiling.decompositions import for_cpu
from fastarat.training.compiling.together import Compile, one_first, run_together
from fastarat.training.step.train_step import EAGER, Controls, Stages, Step, StepParts, train_step

MOST_UNROLLED = 60
"""The most convolutions, counted once a forward, of a step that is compiled as one graph: 40 took 54 s from a cold
cache (one CPU core), 66 took 137 s, more than the 90 s that a start should cost at most."""


class NotCompiled(WorkError):
    """The compiler refused the step, or failed."""


def unrolled_size(parts: StepParts) -> int:
    """How many convolutions the whole step runs forward; up to `MOST_UNROLLED` it is compiled as one graph."""
    return num_convolutions(parts.model) * (parts.attack.steps + 1) + num_convolutions(parts.method)


def num_convolutions(net: nn.Module) -> int:
    """How many convolutions the net has."""
    return sum(isinstance(layer, nn.Conv2d) for layer in net.modules())


def build_step(
    parts: StepParts,
    controls: Controls,
    mode: CompileMode,
    *,
    unroll: bool,
    backend: str = "inductor",
    meet: Callable[[], None] | None = None,
) -> Step:
    """The step in `mode`; nothing is compiled before its first call with images of a size, which raises `WorkError`
    if that fails.

    `unroll`: one graph for the whole step, or one a stage. `backend`: of torch.compile. `meet`: of several processes,
    for which see `fastarat.training.compiling.together`. Batches may differ in the size of their images only.
    """
    if mode == "eager":
        return lambda batch: train_step(parts, batch, controls)
    # With autograd traced, attack and training are one graph.
    torch._dynamo.config.trace_autograd_ops = True
    compiler = _compiler(backend, parts.precision.device_type, overlaps=parts.world.group is not None)
    compiler = run_together(one_first(compiler), meet) if meet else compiler

    def full_graph(function: FunctionType) -> Callable:
        return torch.compile(_with_own_code(function), fullgraph=True, dynamic=False, backend=compiler)

    def compiled() -> Step:
        whole = full_graph(train_step) if unroll else train_step
        stages = EAGER if unroll else Stages(*map(full_graph, EAGER))

        def step(batch: Batch) -> dict[str, Tensor]:
            with _compiler_errors():
                return whole(parts, batch, controls, stages)

        return step

    if mode == "compile":
        return StepBySize(compiled)
    return StepBySize(lambda: CapturedStep(parts, compiled(), meet))


def _compiler(backend: str, device_type: str, *, overlaps: bool) -> Compile:
    """The backend of torch.compile; inductor with the options by which its code is right."""
    if backend != "inductor":
        return torch._dynamo.lookup_backend(backend)

    def by_inductor(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        from torch._inductor.compile_fx import compile_fx  # seconds to import

        from fastarat.training.compiling.graph_passes import graph_options

        options = compiler_options(device_type) | kept_options() | graph_options(overlaps=overlaps)
        with for_cpu() if device_type == "cpu" else nullcontext():
            return compile_fx(graph, inputs, config_patches=options)

    return by_inductor


def _with_own_code(function: FunctionType) -> FunctionType:
    """A copy that torch.compile takes for another function: it keeps what it compiled, and counts how often, by the
    code object, whatever wraps it; and it gives up after eight of them."""
    code = function.__code__.replace()
    return FunctionType(code, function.__globals__, function.__name__, function.__defaults__, function.__closure__)


class StepBySize:
    """A step for images of one size, made by `build` when the first batch of another size comes.

    The one before is given up first: images only grow, and a graph keeps the memory that the next one needs.
    """

    def __init__(self, build: Callable[[], Step]):
        self.build = build
        self.size: torch.Size | None = None
        self.step: Step | None = None

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """Train on a batch."""
        if self.step is None or batch.x.shape != self.size:
            self.close()
            self.size, self.step = batch.x.shape, self.build()
        return self.step(batch)

    def close(self) -> None:
        """Give up what was captured: NCCL, part of which is in the graph, does not end before it does."""
        if isinstance(self.step, CapturedStep):
            self.step.close()
        self.step = None


@contextmanager
def _compiler_errors() -> Iterator[None]:
    """Say in one line what the compiler could not do."""
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException  # seconds to import

    try:
        yield
    except (TorchDynamoException, FailOnRecompileLimitHit) as error:
        cause = getattr(error, "inner_exception", error)
        if isinstance(cause, WorkError) or memory_that_ran_out(cause):  # of another process, or none of the compiler's
            raise cause from None
        lines = str(cause).splitlines()
        # A C++ compiler's own report stands further down.
        reported = next((line.strip() for line in lines if "error: " in line), "")
        reason = ": ".join(filter(None, [*lines[:1], reported])) or type(cause).__name__
        fix = "--compile eager --kernels pytorch runs it as it is"
        raise NotCompiled(f"the step could not be compiled ({reason}); {fix}") from error
