"""Compiled code is held against the step as it is written, once for each size of images, before a run trains by it: it
has to do the same, and to be faster where nobody asked for it.

Compilers make mistakes of which no error tells. The bound of the loss is that of the gate by which forms of the step
are tuned; lengths, compared at the run's own learning rate and attack, may differ twice as much as there.
"""

import math
import time
from collections.abc import Sequence
from statistics import median

import torch
from torch import Tensor

from fastarat.data.loading.loader import Batch
from fastarat.training.step.captured import remembered
from fastarat.training.step.compiled import NotCompiled
from fastarat.training.step.train_step import Step, StepParts
from fastarat.training.tuning.gate import LENGTH, bound

_LOSS = 0.1
"""the least loss of which an error is a share: of a smaller one rounding is a large part"""
_TURNS = 3


def held_against(written: Step, compiled: Step, parts: StepParts, batch: Batch) -> dict[str, Tensor]:
    """Take a step by `compiled` code, and return its metrics, if it does what the step as `written` does.

    Compared are the loss, and how far weights, momenta and running statistics move: lengths, which tell what is not
    finite or was never written, and not directions, which the gate tells. Raises `NotCompiled` where they differ by
    more than rounding; the state has moved then.
    """
    put_back, before = remembered(parts), _state(parts)
    right, its_moves = float(written(batch)["loss"]), _moved(before, _state(parts))
    put_back()
    metrics = compiled(batch)
    moves = _moved(before, _state(parts))
    errors = {"the loss": abs(float(metrics["loss"]) - right) / max(abs(right), _LOSS)}
    for name, its in its_moves.items():
        difference = abs(moves[name] - its)
        errors[f"how far {name} moved"] = difference / its if its else math.inf if difference else difference
    dtype = parts.precision.dtype
    precision = "fp32" if dtype == "fp64" else dtype
    allowed = dict.fromkeys(errors, 2 * LENGTH) | {"the loss": bound("full size: loss", precision, len(batch.y))}
    # What is not finite as it is written is no fault of the compiler.
    wrong = [name for name, error in errors.items() if not error <= allowed[name]]  # NaN is wrong
    if wrong and torch.tensor([right, *its_moves.values()]).isfinite().all():
        name = wrong[0]
        found = f"{name} is off by {errors[name]:.2g} of it, {allowed[name]:.2g} is rounding"
        fix = "--compile eager --kernels pytorch runs it as it is"
        raise NotCompiled(f"the compiled step is not right ({found}); {fix}")
    return metrics


def gain_in_turns(written: Step, compiled: Step, parts: StepParts, batch: Batch) -> float:
    """How many times as fast as the step as `written` the `compiled` one is, by the median of a few turns on a CPU.
    What they move is put back, bit by bit."""
    put_back = remembered(parts)
    seconds: dict[str, list[float]] = {"written": [], "compiled": []}
    for _ in range(_TURNS):
        for name, step in (("written", written), ("compiled", compiled)):
            started = time.monotonic()
            step(batch)
            seconds[name].append(time.monotonic() - started)
    put_back()
    return median(seconds["written"]) / median(seconds["compiled"])


def _state(parts: StepParts) -> dict[str, list[Tensor]]:
    buffers = [buffer for net in (parts.model, parts.method) for buffer in net.buffers() if buffer.is_floating_point()]
    # Momenta hold the gradient, whatever the learning rate.
    groups = {"the weights": parts.parameters, "the momenta": parts.momenta, "the running statistics": buffers}
    return {name: [tensor.detach().clone() for tensor in tensors] for name, tensors in groups.items() if tensors}


def _moved(before: dict[str, list[Tensor]], after: dict[str, list[Tensor]]) -> dict[str, float]:
    """The length of each group's movement."""
    return {name: _length(after[name], before[name]) for name in before}


def _length(after: Sequence[Tensor], before: Sequence[Tensor]) -> float:
    return float(torch.stack([(one - other).norm() for one, other in zip(after, before, strict=True)]).norm())
