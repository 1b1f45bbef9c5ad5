"""Whether a form of the step trains as the definition does: steps of both, compared. What is wrong gets no speed.

The definition is fastarat's eager step in full precision, which `fastarat verify` holds against the published code.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fastarat.data.loading.loader import Batch
from fastarat.models.split_batch_norm import BRANCHES
from fastarat.training.choices import Choices
from fastarat.training.step.precision import Dtype
from fastarat.training.tuning.subject import FastaratSubject, State, StepSetting, Subject

LEARNING_RATE = 1e-4
"""of all that is compared: far larger ones let any rounding grow from step to step, whatever the code"""


class Scale(NamedTuple):
    """How many times its configured size the attack has in a step."""

    radius: float
    step: float


SMALL, SMALL_FREE = Scale(1 / 50, 1 / 50), Scale(1, 1 / 50)
FULL, FULL_FREE = Scale(1, 1), Scale(10, 1 / 2)
SCALES = (SMALL, SMALL_FREE, SMALL, FULL, FULL_FREE)
"""Step by step. At full size one flipped sign (of a gradient that is zero but for rounding) changes the rest of that
image's attack, and with it the loss by about 1/B: only the last two steps have it, and they have bounds of their own.
In the free ones no ball stops the attack: how far it goes tells the number of its steps."""
COUNTED = ("adversarial_accuracy", "clean_accuracy", "teacher_accuracy", "replayed")
"""metrics that are shares of the batch: one image is a large step of them"""
DIFFERENCES = ("divergence", "weighted_divergence", "guidance")
"""terms that compare two nearly equal predictions, and vanish but for rounding: their errors are shares of the loss"""
IMAGES = 1e-6
"""how far a pixel in [0, 1] may be off: rounding in float32 is 6e-8"""
# Relative RMS errors. One rounding is 6e-8 (fp32), 5e-4 (TF32), 4e-3 (bf16), 5e-4 (fp16, whose range costs more); a
# step chains forty layers and eleven forwards.
TOLERANCES = {"fp32": 1e-4, "tf32": 5e-3, "bf16": 2e-2, "fp16": 2e-2}
# How far each group of weights moved, which the weights' own size hides (the steps are 1e-4 of it). Its length is known
# well: half the learning rate is an error of 0.5, a lost stop-gradient one of 5. Its direction is not: in a net at its
# beginning features of different images are nearly equal, and the predictors' batch-norms divide their differences,
# rounding and all, by their spread. The bound is for another direction: 1.4 is one at right angles, 2 the opposite.
LENGTH = 0.1
MOVEMENT = {"fp32": 0.2, "tf32": 0.6, "bf16": 1.2, "fp16": 1.2}


def precision_of(dtype: Dtype, device: str) -> str:
    """Whose tolerance a form gets, a key of `TOLERANCES`: PyTorch's float32 convolutions are TF32 on a GPU."""
    if dtype == "fp64":
        return "fp32"
    return "tf32" if dtype == "fp32" and device == "cuda" else dtype


def bound(name: str, precision: str, batch: int) -> float:
    """The largest error that a quantity may have at this batch size."""
    kind, _, quantity = name.rpartition(": ")
    if kind == "free" and quantity == "adversarial_cross_entropy":
        # A tenth of the attack's steps changes it by 1e-2 and more; images that went another way by 2e-3.
        return max(6e-3, 0.1 / batch)
    if kind in ("free", "full size"):
        return max(2e-2, 0.3 / batch)
    return {"length": LENGTH, "movement": MOVEMENT[precision]}.get(kind, TOLERANCES[precision])


@dataclass(frozen=True)
class Snapshot:
    """What is compared after a step."""

    losses: dict[str, float]
    statistics: State
    parameters: State


Right = tuple[Sequence[Batch], Sequence[Snapshot]]
"""the batches of a comparison, and what the definition makes of them"""


@dataclass(frozen=True)
class Verdict:
    """The largest errors over the steps, what they may be, and what is wrong with them (None: nothing)."""

    errors: dict[str, float]
    tolerance: float
    problem: str | None


def batches_of(setting: StepSetting) -> list[Batch]:
    """The batches of the comparison: the first ones of fastarat's own loader, in float32."""
    loader = FastaratSubject(setting, Choices(setting.device.type)).batches()
    return [next(loader) for _ in SCALES]


def definition(setting: StepSetting, batches: Sequence[Batch]) -> list[Snapshot]:
    """What is right: eager PyTorch in float64 on a CPU, in float32 without TF32 on a GPU, where float64 is slow.

    The first snapshot is that of the initial weights.
    """
    dtype: Dtype = "fp64" if setting.device.type == "cpu" else "fp32"
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        subject = FastaratSubject(setting, Choices(setting.device.type, dtype))
        return list(_snapshots(subject, batches))


def compare(subject: Subject, right: Right, precision: str) -> Verdict:
    """Let a subject, at its initial weights, take the steps. `precision`: see `precision_of`."""
    batches, snapshots = right
    with subject.flags():
        found = list(_snapshots(subject, batches))
    errors = _errors(found, snapshots)
    problems = []
    for name, error in errors.items():
        allowed = bound(name, precision, len(batches[0].y))
        if not error <= allowed:  # NaN is wrong
            problems.append(f"{name} off by {error:.2g} (allowed: {allowed:g})")
    return Verdict(errors, TOLERANCES[precision], "; ".join(problems) or None)


def compare_images(mine: Iterator[Batch], right: Right) -> str | None:
    """What is wrong with a form's own batches, the first ones of its loader (None: nothing): steps are compared on the
    definition's, and would not tell a wrong crop or flip."""
    its, _ = right
    errors = [float((batch.x - found.x.to(batch.x.dtype)).abs().max()) for batch, found in zip(its, mine, strict=False)]
    wrong = [error for error in errors if not error <= IMAGES]  # NaN is wrong
    return f"images off by {wrong[0]:.2g} (allowed: {IMAGES:g})" if wrong else None


def _snapshots(subject: Subject, batches: Sequence[Batch]) -> Iterator[Snapshot]:
    yield Snapshot({}, {}, _copied(subject.parameters()))
    for scale, batch in zip(SCALES, batches, strict=True):
        subject.scale_attack(*scale)
        metrics = subject.step(batch)
        # AT's loss is the adversarial cross-entropy, and has no name of its own.
        metrics = {"adversarial_cross_entropy": metrics["loss"], **metrics}
        losses = {name: float(value) for name, value in metrics.items() if name not in COUNTED}
        yield Snapshot(losses, _copied(subject.statistics()), _copied(subject.parameters()))


def _copied(state: State) -> State:
    # To the host: a GPU's memory is for what is measured.
    return {name: value.cpu().double() if value.is_cuda else value.double().clone() for name, value in state.items()}


def _errors(found: Sequence[Snapshot], right: Sequence[Snapshot]) -> dict[str, float]:
    """The largest relative error of each quantity over the steps."""
    errors: dict[str, float] = {}
    for scale, mine, its in zip(SCALES, found[1:], right[1:], strict=True):
        if mine.losses.keys() != its.losses.keys():
            return {"losses reported": float("nan")}
        of_step = {name: abs(mine.losses[name] - value) / _scale(its, name) for name, value in its.losses.items()}
        if scale in (SMALL, SMALL_FREE):
            of_step |= _state_errors(mine, its, right[0].parameters)
        else:
            kind = "full size" if scale == FULL else "free"
            of_step = {f"{kind}: {name}": error for name, error in of_step.items()}
        for name, error in of_step.items():
            # A NaN stays: max() would pass over it.
            errors[name] = error if not error <= errors.get(name, -1.0) else errors[name]
    return errors


def _scale(right: Snapshot, name: str) -> float:
    return abs(right.losses["loss" if name in DIFFERENCES else name])


def _state_errors(mine: Snapshot, its: Snapshot, first: State) -> dict[str, float]:
    errors = {}
    for kind in ("mean", "variance"):
        names = [name for name in its.statistics if name.endswith(kind)]
        errors[f"running {kind}s"] = _relative(_flat(mine.statistics, names), _flat(its.statistics, names))
    names = list(its.parameters)
    errors["parameters"] = _relative(_flat(mine.parameters, names), _flat(its.parameters, names))
    for group, members in _groups(names).items():
        before = _flat(first, members)
        moved, right = _flat(mine.parameters, members) - before, _flat(its.parameters, members) - before
        errors[f"movement: {group}"] = _relative(moved, right)
        errors[f"length: {group}"] = abs(float(moved.norm() / right.norm()) - 1)
    return errors


def _groups(names: Sequence[str]) -> dict[str, list[str]]:
    """Names of parameters by what they serve: a lost stop-gradient shows in the clean branch's alone."""
    groups: dict[str, list[str]] = {}
    for name in names:
        branch = name.rpartition(".")[2]
        own = branch if branch in BRANCHES else "predictors" if name.startswith("predictors.") else "shared"
        groups.setdefault(own, []).append(name)
    return groups


def _flat(state: State, names: Sequence[str]) -> Tensor:
    return torch.cat([state[name].flatten() for name in names])


def _relative(found: Tensor, right: Tensor) -> float:
    return float((found - right).norm() / right.norm())
