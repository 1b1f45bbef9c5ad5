"""The training step as a function of a batch: eager, compiled, or compiled and captured in a CUDA graph.

One full graph holds the whole step, every step of the attack unrolled, where that compiles in bearable time;
else each of its three stages is a full graph, and the attack's, compiled once, runs for every step. A CUDA
graph captures the whole step either way: one launch from the host. Images of another size have a step of their own,
made when the first batch of them comes.
"""

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from fastarat.attacks.cuda_graphs import capturing
from fastarat.common.errors import WorkError, first_line
from fastarat.config.training import CompileMode
from fastarat.data.loading.loader import Batch
from fastarat.training.step.decompositions import FILES, for_cpu
from fastarat.training.step.together import Compile, one_first, run_together
from fastarat.training.step.train_step import EAGER, Controls, Stages, StepParts, train_step

Step = Callable[[Batch], dict[str, Tensor]]

MOST_UNROLLED = 60
"""The most convolutions, counted once a forward, of a step that is compiled as one graph: 40 took 54 s from a cold
cache (one CPU core), 66 took 137 s, more than the 90 s that a start should cost at most."""
FLAG = "-fno-tree-loop-distribute-patterns"
"""for GCC"""
SOONER = {"cpp.vec_isa_ok": True, "cpp.enable_loop_tail_vec": False}
_WARM_UP_STEPS = 3


class NotCompiled(WorkError):
    """The compiler refused the step, or failed."""


class NotCaptured(WorkError):
    """The step runs, but no CUDA graph takes it."""


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
    for which see `fastarat.training.step.together`. Batches may differ in the size of their images only.
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
    pool = torch.cuda.graph_pool_handle()
    return StepBySize(lambda: CapturedStep(parts, compiled(), pool, meet))


def _compiler(backend: str, device_type: str, *, overlaps: bool) -> Compile:
    """The backend of torch.compile; inductor with the options by which its code is right."""
    if backend != "inductor":
        return torch._dynamo.lookup_backend(backend)

    def by_inductor(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        from torch._inductor.compile_fx import compile_fx  # seconds to import

        from fastarat.training.step.graph_passes import graph_options

        options = compiler_options(device_type) | kept_options() | graph_options(overlaps=overlaps)
        with for_cpu() if device_type == "cpu" else nullcontext():
            return compile_fx(graph, inputs, config_patches=options)

    return by_inductor


def compiler_options(device_type: str) -> dict[str, Any]:
    """The `options` of inductor by which its code is right, and compiled sooner.

    Sooner by a quarter (`digits-arat`, bf16: 118 CPU seconds, 87 with them): inductor builds no programs to try AVX,
    which a compiler that takes torch's headers knows; and what is left of a loop that is no multiple of a vector stays
    scalar, which made no difference to the two steps that were timed. A user's own `cpp.vec_isa_ok` stays.
    """
    if device_type != "cpu" or platform.machine() != "x86_64":
        return {}
    from torch._inductor.config import cpp  # seconds to import

    own = {} if cpp.vec_isa_ok is None else {"cpp.vec_isa_ok": cpp.vec_isa_ok}
    return {**right_code(device_type), **SOONER, **own}


def kept_options() -> dict[str, Any]:
    """The `options` of inductor by which traced graphs are kept for the next run, which starts sooner by a third.

    Of the two functions their arguments tell all that they do. What is kept holds our decompositions, and is that of
    this state of their files.
    """
    from torch._inductor.custom_graph_pass import get_hash_for_files  # seconds to import

    state = get_hash_for_files(FILES).hex()
    names = (f"torch.amp.autocast_mode.{name}" for name in ("_enter_autocast", "_exit_autocast"))
    return {"unsafe_marked_cacheable_functions": dict.fromkeys(names, state)}


def num_kept() -> int:
    """How often this process found compiled code of another one, or its own, instead of compiling it."""
    from torch._dynamo.utils import counters  # seconds to import

    return counters["aot_autograd"]["autograd_cache_hit"] + counters["inductor"]["fxgraph_cache_hit"]


def right_code(device_type: str) -> dict[str, Any]:
    """The `options` of inductor by which its code is right.

    At -O3 GCC 12.2 leaves parts of a transposed tile of bf16 unwritten where it makes copies out of loops: sums over
    that tile are NaN, and right without. The way to a flag is `march`, after which inductor writes nothing.
    """
    if device_type != "cpu" or platform.machine() != "x86_64":
        return {}
    from torch._inductor.config import cpp  # seconds to import
    from torch._inductor.cpp_builder import is_gcc

    return {"cpp.march": f"{cpp.march or 'native'} {FLAG}"} if is_gcc() else {}


def _with_own_code(function: FunctionType) -> FunctionType:
    """A copy that torch.compile takes for another function: it keeps what it compiled, and counts how often, by the
    code object, whatever wraps it; and it gives up after eight of them."""
    code = function.__code__.replace()
    return FunctionType(code, function.__globals__, function.__name__, function.__defaults__, function.__closure__)


class StepBySize:
    """A step of its own for each size of images, made by `build` when the first batch of that size comes."""

    def __init__(self, build: Callable[[], Step]):
        self.build = build
        self.steps: dict[torch.Size, Step] = {}

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """Train on a batch."""
        size = batch.x.shape
        if size not in self.steps:
            self.steps[size] = self.build()
        return self.steps[size](batch)

    def close(self) -> None:
        """Give up what was captured: NCCL, part of which is in the graphs, does not end before they do."""
        for step in self.steps.values():
            if isinstance(step, CapturedStep):
                step.close()
        self.steps.clear()


class CapturedStep:
    """A step captured in a CUDA graph at its first call: one launch replays it all.

    The metrics of a call are overwritten by the next one. `pool`: the handle of memory that several captured
    steps share, of which one runs at a time; None: its own. `meet`: as for `build_step`.
    """

    def __init__(self, parts: StepParts, step: Step, pool: Any = None, meet: Callable[[], None] | None = None):
        self.parts, self.step, self.pool, self.meet = parts, step, pool, meet
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
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP_STEPS):
                self.step(self.batch)
        torch.cuda.current_stream().wait_stream(side)
        if self.meet:
            self.meet()  # a capture begins by waiting for the device, on which another one may have failed to come
        put_back()
        graph = torch.cuda.CUDAGraph()
        try:
            with capturing(graph, pool=self.pool):
                self.metrics = self.step(self.batch)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            fix = "--compile compile --kernels pytorch runs it uncaptured"
            raise NotCaptured(f"the step could not be captured ({first_line(error)}); {fix}") from error
        if self.meet:
            self.meet()
        self.graph = graph


def state_tensors(parts: StepParts) -> list[Tensor]:
    """Every tensor that a step updates in place."""
    precision = parts.precision
    buffers = (*parts.model.buffers(), *parts.method.buffers())
    factors = [] if precision.attack_factor is None else [precision.attack_factor]
    return [*parts.parameters, *parts.momenta, *buffers, precision.scale, precision.good_steps, *factors]


def remembered(parts: StepParts) -> Callable[[], None]:
    """What puts all that steps move back as it is now, bit by bit."""
    state = state_tensors(parts)
    before = [tensor.detach().clone() for tensor in state]  # a graph would bind the parameters to a stream

    @torch.no_grad()
    def put_back() -> None:
        for tensor, value in zip(state, before, strict=True):
            tensor.copy_(value)

    return put_back


@contextmanager
def _compiler_errors() -> Iterator[None]:
    """Say in one line what the compiler could not do."""
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException  # seconds to import

    try:
        yield
    except (TorchDynamoException, FailOnRecompileLimitHit) as error:
        cause = getattr(error, "inner_exception", error)
        if isinstance(cause, WorkError):  # of another process
            raise cause from None
        lines = str(cause).splitlines()
        # A C++ compiler's own report stands further down.
        reported = next((line.strip() for line in lines if "error: " in line), "")
        reason = ": ".join(filter(None, [*lines[:1], reported])) or type(cause).__name__
        fix = "--compile eager --kernels pytorch runs it as it is"
        raise NotCompiled(f"the step could not be compiled ({reason}); {fix}") from error
