"""What a training step asks of a GPU, counted without one: `python -m bench.kernels.step_cost` writes the table of
kernels/README.md; `--check` only compares.

Launches and bytes of a whole step (attack and update) in three forms: eager, compiled, and compiled with the fused
kernels. Eager: every operation that PyTorch dispatches, on tensors without memory, by the launches and passes that
its CUDA kernels take (`fastarat.training.profiling.cost`). Compiled: the kernels that inductor schedules for each of
the three stages, with the buffers that each reads and writes. It schedules for a CPU here: on a GPU it splits large
reductions into two launches, and fuses otherwise now and then. A convolution counts one pass over its inputs and
outputs in all forms.
"""

import argparse
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from fastarat_kernels.implementations import PYTORCH, TRITON, Kernels
from torch._functorch import config as functorch_config
from torch._subclasses.fake_tensor import FakeTensorMode

from bench.common.inputs import random_images
from bench.common.rows import markdown
from fastarat.common.console import notice
from fastarat.common.distributed import World
from fastarat.config.recipes import recipe
from fastarat.data.loading.loader import Batch
from fastarat.training.build import build_training
from fastarat.training.profiling.cost import CostCounter
from fastarat.training.state import Training
from fastarat.training.step.train_step import EAGER, Fixed, train_step

PAGE = Path(__file__).parents[2] / "kernels" / "README.md"
BLOCK = re.compile(r"(<!-- table: step-cost -->\n).*?(<!-- end -->)", re.DOTALL)
RECIPES = {"cifar10-resnet18-arat": "ResNet-18", "cifar10-wrn-34-10-arat": "WRN-34-10"}
_COPY_BYTES_PER_S = 4.3e12
Counts = tuple[int, int]
"""launches, bytes"""


def built(name: str, batch: int | None = None, steps: int | None = None, *, kernels: Kernels = PYTORCH) -> Training:
    """A recipe's training in bf16, on random images; `batch` and `steps` replace the recipe's."""
    config = recipe(name)
    config = replace(config, batch=batch or config.batch, num_validation_images=0)
    config = replace(config, attack=replace(config.attack, steps=steps or config.attack.steps))
    return build_training(
        config, random_images("cifar10", config.batch), World(torch.device("cpu")), dtype="bf16", kernels=kernels
    )


def eager_cost(training: Training) -> Counts:
    """What the eager step dispatches."""
    batch = next(iter(training.loader.batches(1)))
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake, CostCounter() as counter:
        train_step(training.parts, Batch(*map(fake.from_tensor, batch)), training.controls)
    return counter.total.launches, counter.total.bytes


def compiled_cost(training: Training) -> Counts:
    """What inductor schedules for the three stages; the attack's counts once for each of its steps."""
    batch = next(iter(training.loader.batches(1)))
    parts, controls, x, y = training.parts, training.controls, batch.x, batch.y
    start = _scheduled(EAGER.start_attack, parts, batch, controls)
    fixed = Fixed(x, None, parts.precision.constant_weights(parts.model))
    attack_step = _scheduled(EAGER.attack_step, parts, x, y, fixed, controls)
    descend = _scheduled(EAGER.descend, parts, x, x, y, controls)
    steps = parts.attack.steps
    return start[0] + steps * attack_step[0] + descend[0], start[1] + steps * attack_step[1] + descend[1]


class _Scheduled(Exception):
    """Inductor has scheduled; there is nothing to generate code for."""


def _scheduled(function: Callable, *args: Any) -> Counts:
    """Kernels and bytes of one compiled stage, as inductor schedules it."""
    from torch._dynamo.exc import BackendCompilerFailed
    from torch._inductor import config, ir, scheduler

    from fastarat.training.compiling.graph_passes import graph_options  # seconds to import, as what it is for

    found: list[Counts] = []

    def count(self: Any) -> None:
        nodes = [
            node
            for node in self.nodes
            if not isinstance(node, scheduler.NopKernelSchedulerNode) and not isinstance(node.node, ir.MultiOutput)
        ]
        found.append((len(nodes), sum(node.get_read_write_buffers_sizes() for node in nodes)))
        raise _Scheduled

    torch.compiler.reset()
    torch._dynamo.config.trace_autograd_ops = True
    options = {"fx_graph_cache": False, "fx_graph_remote_cache": False, **graph_options(overlaps=False)}
    autograd_uncached = functorch_config.patch(enable_autograd_cache=False)
    with patch.object(scheduler.Scheduler, "codegen", count), config.patch(options), autograd_uncached:
        try:
            torch.compile(function, fullgraph=True, dynamic=False)(*args)
        except (BackendCompilerFailed, _Scheduled):
            if not found:
                raise
    return found[0]


FORMS: dict[str, tuple[Kernels, Callable[[Training], Counts]]] = {
    "eager": (PYTORCH, eager_cost),
    "compiled": (PYTORCH, compiled_cost),
    "compiled, fused kernels": (TRITON, compiled_cost),
}


def row(name: str, form: str) -> list[str]:
    """The counts of a recipe's net in one form: the cells of a line."""
    kernels, cost = FORMS[form]
    launches, size = cost(built(name, kernels=kernels))
    return [RECIPES[name], form, f"{launches:,}", f"{size / 1e9:.1f}", f"{size / _COPY_BYTES_PER_S * 1e3:.1f}"]


def table() -> str:
    """The counts of both nets in every form, as Markdown."""
    cells = []
    for name, net in RECIPES.items():
        for form in FORMS:
            notice(f"counting {net}, {form}")
            cells.append(row(name, form))
    settings = f"AR-AT, batch 128, bf16, 10 attack steps; torch {torch.__version__.partition('+')[0]}"
    return f"{markdown(['net', 'form', 'launches', 'GB', 'ms at 4.3 TB/s'], cells)}\n{settings}.\n"


def main(arguments: list[str] | None = None) -> int:
    """Rewrite the page, or say whether it is up to date."""
    parser = argparse.ArgumentParser(
        prog="bench.kernels.step_cost", description="Count a step's launches and bytes: minutes."
    )
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if the page is not up to date")
    check = parser.parse_args(arguments).check
    before = PAGE.read_text()
    after = BLOCK.sub(lambda match: match[1] + table() + match[2], before)
    if not check:
        PAGE.write_text(after)
    elif before != after:
        notice(f"{PAGE} is not up to date: run python -m bench.kernels.step_cost")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
