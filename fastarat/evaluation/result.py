"""What an evaluation of a model's robustness ends in."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastarat.config.attack import Norm
from fastarat.evaluation.accuracies import Accuracy
from fastarat.evaluation.autoattack.state import BatchOutcome, Task, nothing
from fastarat.evaluation.autoattack.warnings import Traces, afterthoughts, never_searched, traces
from fastarat.models.predictions import are_undefined


@dataclass(frozen=True)
class Evaluation:
    """What is left of N images. All tensors are on the CPU; percentages are of all N images."""

    attack: str
    norm: Norm
    eps: float
    """radius in units where pixels are in [0, 1]"""
    num_classes: int
    labels: Tensor
    """int64 [N]"""
    flags: dict[str, Tensor]
    """which images are right: bool [N], after `clean` and after each attack"""
    rows: Tensor
    """places of the images that an attack broke, rising: int64 [M]"""
    x_adv: Tensor
    """their adversarial images [M, C, H, W]"""
    undefined_clean: Tensor
    """places of the images that count as misclassified as they are since their logits predict nothing: int64"""
    traces: dict[str, Traces]
    """of each attack that has begun, what it gives reason to warn of"""
    seconds: dict[str, float]
    """of each attack, over all sessions"""
    asked: tuple[str, ...]
    """all attacks, those too that have not begun"""
    first_warnings: tuple[str, ...]
    """what settings and model gave reason to say before the attacks, a sentence each"""
    stopped: str
    """where the budget ended it, so that robust accuracy may be lower; empty if it is complete"""
    options: tuple[str, ...] = ()
    """where it departs from the standard's setting, a phrase each"""

    @property
    def warnings(self) -> tuple[str, ...]:
        """Why the numbers may say too much, a sentence each; they are as they would be without."""
        found = (*self.first_warnings, *afterthoughts(self.asked, self.flags, self.traces))
        if self.complete:
            return found
        return (*found, f"The budget ended it ({self.stopped}), so robust accuracy may be too high.")

    @property
    def complete(self) -> bool:
        """Whether every attack has seen every image that it had to."""
        return not self.stopped

    @property
    def num_images(self) -> int:
        """N."""
        return len(self.labels)

    @property
    def counts(self) -> dict[str, int]:
        """How many images are right after `clean` and after each attack."""
        return {name: int(flags.sum()) for name, flags in self.flags.items()}

    @property
    def after(self) -> dict[str, float]:
        """Robust accuracy in percent after each attack."""
        return {name: 100 * count / self.num_images for name, count in self.counts.items() if name != "clean"}

    @property
    def clean(self) -> float:
        """Accuracy on the images as they are, in percent."""
        return 100 * self.counts["clean"] / self.num_images

    @property
    def robust(self) -> float:
        """Robust accuracy after all attacks, in percent."""
        return 100 * list(self.counts.values())[-1] / self.num_images

    @property
    def not_attackable(self) -> dict[str, Tensor]:
        """Places of the images of which each attack had no gradient free of NaN to follow at any point; they count as
        robust to it, without evidence: int64."""
        return {name: own.not_attackable for name, own in self.traces.items()}

    @property
    def unconfirmed(self) -> dict[str, Tensor]:
        """Places of what each attack found and the check refused; they count as robust to it: int64."""
        return {name: own.unconfirmed for name, own in self.traces.items()}

    @property
    def undefined(self) -> dict[str, Tensor]:
        """Places of the images that count as misclassified since their logits are NaN, or infinite for several classes,
        as they are (`clean`) and under each attack: int64."""
        return {"clean": self.undefined_clean, **{name: own.undefined for name, own in self.traces.items()}}

    @property
    def unsearched(self) -> Tensor:
        """Which of the images that are robust in the end no attack could search: bool [N]."""
        return never_searched(list(self.flags.values())[-1], self.traces)

    @property
    def num_not_attackable(self) -> int:
        """How many those are."""
        return int(self.unsearched.sum())

    def accuracy(self, stage: str) -> Accuracy:
        """Class by class after `clean` or an attack, with the interval."""
        of = (self.labels[self.flags[stage]], self.labels)
        right, total = (tuple(labels.bincount(minlength=self.num_classes).tolist()) for labels in of)
        return Accuracy(right, total)

    def to_json(self) -> dict[str, Any]:
        """All but the tensors, for `json.dumps`."""
        low, high = self.accuracy(list(self.flags)[-1]).interval
        return {
            "attack": self.attack,
            "norm": self.norm,
            "eps": self.eps,
            "num_images": self.num_images,
            "clean": self.clean,
            "robust": self.robust,
            "interval_95": [low, high],
            "after": self.after,
            "counts": self.counts,
            "not_attackable": {name: len(rows) for name, rows in self.not_attackable.items()},
            "undefined_logits": {name: len(rows) for name, rows in self.undefined.items()},
            "seconds": self.seconds,
            "warnings": list(self.warnings),
            "options": list(self.options),
            "complete": self.complete,
            "stopped": self.stopped,
        }


def result_of(
    task: Task, robust: list[Tensor], outcomes: list[list[BatchOutcome]], warnings: list[str], stopped: str
) -> Evaluation:
    """The result of an evaluation; `robust` (bool [N] each) begins with the clean images', `outcomes` are those of the
    attacks that have begun."""
    settings, begun = task.settings, dict(zip(task.settings.names, outcomes, strict=False))
    every = [nothing(task), *(outcome for own in outcomes for outcome in own)]
    rows, order = torch.cat([outcome.broken for outcome in every]).sort()
    return Evaluation(
        attack=settings.attack,
        norm=settings.norm,
        eps=settings.eps,
        num_classes=task.clean_logits.shape[1],
        labels=task.labels.cpu(),
        flags=dict(zip(("clean", *begun), robust, strict=True)),
        rows=rows,
        x_adv=torch.cat([outcome.x_adv for outcome in every])[order],
        undefined_clean=are_undefined(task.clean_logits).nonzero().flatten().cpu(),
        traces={name: traces(own) for name, own in begun.items()},
        seconds={name: sum(float(outcome.seconds) for outcome in own) for name, own in begun.items()},
        asked=settings.names,
        first_warnings=tuple(warnings),
        stopped=stopped,
    )
