"""Compiled code is held against the step as it is written, once for each size of images, before a run trains by it: it
has to do the same, and to be faster where nobody asked for it.

Compilers make mistakes of which no error tells. Steps are compared at two sizes of the attack at which rounding stays
rounding. At its configured size rounding flips signs of the attack's gradients, which moves the small loss of a trained
net by several percent in bf16. The bound of the loss under the larger one is that of the gate by which forms of the
step are tuned; lengths, compared at the run's own learning rate, may differ twice as much as there, and so may the loss
under the smaller one.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import median

import torch
from torch import Tensor

from fastarat.data.loading.loader import Batch
from fastarat.training.compiling.captured import remembered
from fastarat.training.compiling.compiled import NotCompiled
from fastarat.training.state import Training
from fastarat.training.step.train_step import Step, StepParts
from fastarat.training.tuning.gate import FULL_FREE, LENGTH, SMALL_FREE, Scale, bound

_SCALES = (SMALL_FREE, FULL_FREE)
"""A small attack tells what training does to a net that knows its images; of its loss rounding may be a fiftieth. One
that no ball stops leaves any net a large loss, of which a wrong attack changes a share that rounding does not."""
_LOSS, _STATISTICS = "the loss", "what the running statistics took up"
_OF_STATISTICS = 2e-2
"""how far those of a layer may be off under the small attack: a twentieth more of the batch-norm before it changes them
by a twentieth, rounding in bf16 by two thousandths"""
_KEPT = 0.9
"""the share of running statistics that a step keeps"""
_LEAST_LOSS = 0.1
"""the least loss of which an error is a share: of a smaller one rounding is a large part"""
_TURNS = 3


def held_against(written: Step, compiled: Step, training: Training, batch: Batch) -> dict[str, Tensor]:
    """Take a step by `compiled` code, and return its metrics, if it does what the step as `written` does.

    Compared are the loss, how far weights and momenta move, and what each layer's running statistics take up: lengths,
    which tell what is not finite or was never written, and not directions, which the gate tells. Raises `NotCompiled`
    where they differ by more than rounding; the state has moved then.
    """
    parts = training.parts
    put_back, found = remembered(parts), []
    for scale in _SCALES:
        with _scaled_attack(training, scale):
            right = _outcome(written, parts, batch)
            put_back()
            found.append((right, _outcome(compiled, parts, batch)))
            put_back()
    # Of several processes none leaves before all steps are taken: the others would wait for it in them.
    metrics = compiled(batch)
    for scale, (right, its) in zip(_SCALES, found, strict=True):
        _check(right, its, parts, scale, len(batch.y))
    return metrics


@contextmanager
def _scaled_attack(training: Training, scale: Scale) -> Iterator[None]:
    """Steps attack at this scale; compiled code reads both sizes when it runs."""
    controls, attack = training.controls, training.parts.attack
    controls.eps.fill_(scale.radius * attack.eps)
    controls.step_size.fill_(scale.step * attack.step_size)
    try:
        yield
    finally:
        controls.eps.fill_(attack.eps)
        controls.step_size.fill_(attack.step_size)


def _outcome(step: Step, parts: StepParts, batch: Batch) -> dict[str, Tensor]:
    """The loss of a step, and how far it moved each group's tensors: lengths, float32 [number of tensors]."""
    before = _state(parts)
    # What a trained net's statistics move by is little beside what they take up, and rounding much of it.
    before[_STATISTICS] = [_KEPT * tensor for tensor in before[_STATISTICS]]
    loss = step(batch)["loss"].detach().clone().reshape(1)
    after = _state(parts)
    return {_LOSS: loss} | {name: _lengths(after[name], before[name]) for name in before if before[name]}


def _check(right: dict[str, Tensor], found: dict[str, Tensor], parts: StepParts, scale: Scale, num_images: int) -> None:
    """Raise `NotCompiled` where what was `found` differs from what is `right` by more than rounding."""
    if not torch.cat([*right.values()]).isfinite().all():
        return  # what is not finite as it is written is no fault of the compiler
    for name, its in right.items():
        mine, allowed = found[name], 2 * LENGTH
        if name == _LOSS and scale == FULL_FREE:
            allowed = bound("free: loss", parts.precision.dtype, num_images)
        elif name == _STATISTICS and scale == SMALL_FREE:
            allowed = _OF_STATISTICS
        elif name not in (_LOSS, _STATISTICS):
            its, mine = its.norm(), mine.norm()
        differences = (mine - its).abs()
        sizes = its.abs().clamp(min=_LEAST_LOSS if name == _LOSS else 0)
        error = float(torch.where(differences == 0, 0, differences / sizes).max())
        if not error <= allowed:  # NaN is wrong
            wrong = f"{name} is off by {error:.2g} of it, {allowed:.2g} is rounding"
            fix = "--compile eager --kernels pytorch runs it as it is"
            raise NotCompiled(f"the compiled step is not right ({wrong}); {fix}")


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
    moved = {"how far the weights moved": parts.parameters, "how far the momenta moved": parts.momenta}
    groups = {**moved, _STATISTICS: buffers}
    return {name: [tensor.detach().clone() for tensor in tensors] for name, tensors in groups.items()}


def _lengths(after: Sequence[Tensor], before: Sequence[Tensor]) -> Tensor:
    return torch.stack([(one - other).norm() for one, other in zip(after, before, strict=True)]).float()
