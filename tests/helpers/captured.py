"""Steps of AR-AT on a small net, eager or captured, for tests of the captured step."""

from collections.abc import Sequence
from contextlib import contextmanager

import torch
from fastarat_kernels.implementations import PYTORCH, Kernels
from torch import Tensor

from fastarat.config.attack import AttackConfig
from fastarat.config.method import ARATConfig
from fastarat.config.training import CompileMode
from fastarat.data.loading.loader import Batch
from fastarat.methods.registry import build_method
from fastarat.models.registry import build_model
from fastarat.training.compiling.captured import CapturedStep, state_tensors
from fastarat.training.compiling.compiled import StepBySize, build_step
from fastarat.training.step.train_step import Controls, Step, StepParts
from tests.helpers.step_parts import CPU, parts_of
from tests.helpers.streams import pretend_streams

ATTACK = AttackConfig(eps_255=20, step_255=8, steps=2)


def built(
    mode: CompileMode, kernels: Kernels = PYTORCH, precision="fp32", device=CPU, unroll: bool = True, **options
) -> tuple[Step, StepParts, Controls]:
    """A step, its parts and its controls."""
    torch.manual_seed(0)
    dtype = torch.float64 if precision == "fp64" else torch.float32
    net = build_model("tiny", 10).to(device, dtype, memory_format=torch.channels_last).train()
    method = build_method(ARATConfig(gamma=1.0), net, (3, 16, 16)).to(device, dtype).train()
    parts = parts_of(net, method, ATTACK, precision, device=device, kernels=kernels)
    controls = Controls.of(parts, learning_rate=0.1)
    return build_step(parts, controls, mode, unroll=unroll, **options), parts, controls


def batch(i: int, parts: StepParts, size: int = 16) -> Batch:
    """The i-th batch, in the parts' format."""
    generator = torch.Generator().manual_seed(i)
    x = torch.rand(16, 3, size, size, generator=generator).to(parts.zero)
    y = torch.randint(0, 10, (16,), generator=generator)
    return Batch(x.contiguous(memory_format=torch.channels_last), y.to(x.device), torch.arange(16, device=x.device))


def set_controls(i: int, parts: StepParts, controls: Controls) -> None:
    """Other values of everything that may change between steps."""
    controls.step.fill_(i)
    controls.learning_rate.fill_(0.01 * (1 + i % 5))
    controls.eps.fill_(ATTACK.eps * (1 + i % 3 / 4))
    controls.step_size.fill_(ATTACK.step_size * (1 + i % 4 / 4))
    parts.method.begin_epoch(torch.tensor(0.2 + 0.003 * (i % 100)))


def losses_and_state(num_steps: int, mode: CompileMode, *built_with, **options) -> tuple[Tensor, list[Tensor]]:
    """The losses of steps between which everything changes, and all that they moved."""
    return taken([16] * num_steps, *built(mode, *built_with, **options))


def taken(sizes: Sequence[int], step: Step, parts: StepParts, controls: Controls) -> tuple[Tensor, list[Tensor]]:
    """The same of steps with images of these sizes."""
    losses = []
    for i, size in enumerate(sizes):
        set_controls(i, parts, controls)
        losses.append(step(batch(i % 16, parts, size))["loss"].clone())
    return torch.stack(losses), state_tensors(parts)


@contextmanager
def pretended_capture(monkeypatch, step: CapturedStep | StepBySize):
    """CUDA's graphs on a CPU: a capture computes and moves nothing, a replay runs the step again. Yields how many
    graphs there are at each capture, with its own."""
    graphs, counts = [], []

    def captured_step() -> CapturedStep:
        captured = step.step if isinstance(step, StepBySize) else step
        assert isinstance(captured, CapturedStep)
        return captured

    @contextmanager
    def graph(new, **__):
        graphs.append(new)
        counts.append(len(graphs))
        state = state_tensors(captured_step().parts)
        before = [tensor.clone() for tensor in state]
        yield
        with torch.no_grad():
            for tensor, value in zip(state, before, strict=True):
                tensor.copy_(value)

    class Graph:
        def replay(self):
            captured = captured_step()
            assert captured.graph is self
            for name, value in captured.step(captured.batch).items():
                captured.metrics[name].copy_(value)

        def reset(self):
            graphs.remove(self)

    pretend_streams(monkeypatch)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    yield counts
