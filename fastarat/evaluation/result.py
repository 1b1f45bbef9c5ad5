"""What an AutoAttack evaluation ends in."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastarat.evaluation.autoattack.state import BatchOutcome, Task, nothing
from fastarat.evaluation.autoattack.warnings import Traces, afterthoughts, traces
from fastarat.models.predictions import are_undefined


@dataclass(frozen=True)
class AutoAttackResult:
    """What is left of N images. On the CPU; rows are places among all images."""

    robust_after: dict[str, Tensor]
    """bool [N] after `clean` and after each attack"""
    broken_by: Tensor
    """int64 [N]: -1 misclassified as it is, 0 robust, k by the k-th attack"""
    rows: Tensor
    """of the images that an attack broke, rising: int64 [M]"""
    x_adv: Tensor
    """their adversarial images [M, C, H, W]"""
    unconfirmed: dict[str, tuple[int, ...]]
    """rows of what each attack found and the check refused; they count as robust to it"""
    undefined: dict[str, tuple[int, ...]]
    """rows that count as misclassified since their logits predict nothing, as NaN: after `clean` and each attack"""
    not_attackable: dict[str, tuple[int, ...]]
    """rows of which each attack had no direction to follow at any point; they count as robust to it"""
    traces: dict[str, Traces]
    """of each attack that has begun"""
    seconds: dict[str, float]
    """of each attack, over all sessions"""
    asked: tuple[str, ...]
    """all attacks, those too that have not begun"""
    model_warnings: tuple[str, ...]
    """what the model gave reason to say before the attacks"""
    stopped: str = ""
    """where the budget ended it, so that `robust_after` says too much; empty if it is complete"""

    @property
    def warnings(self) -> tuple[str, ...]:
        """Why the numbers may say too much; they are as they would be without."""
        return (*self.model_warnings, *afterthoughts(self.asked, self.robust_after, self.traces))

    @property
    def counts(self) -> dict[str, int]:
        """How many images are robust after `clean` and after each attack."""
        return {name: int(flags.sum()) for name, flags in self.robust_after.items()}

    @property
    def percent(self) -> float:
        """Robust accuracy over all images, 0 to 100."""
        return 100 * list(self.counts.values())[-1] / len(self.broken_by)


def result_of(
    task: Task, robust: list[Tensor], records: list[list[BatchOutcome]], warnings: list[str], stopped: str
) -> AutoAttackResult:
    """The result of an evaluation; `robust` and `records` are those of the attacks that have begun."""
    of = dict(zip(task.attacks, records, strict=False))  # those that have begun
    left = {name: traces(own) for name, own in of.items()}
    broken_by = torch.where(robust[0], 0, -1)
    for number, own in enumerate(records, 1):
        broken_by[torch.cat([record.broken for record in own])] = number
    flat = [nothing(task), *(record for own in records for record in own)]
    rows, order = torch.cat([record.broken for record in flat]).sort()

    def rows_of(field: str) -> dict[str, tuple[int, ...]]:
        return {name: tuple(getattr(own, field).tolist()) for name, own in left.items()}

    undefined_clean = tuple(are_undefined(task.clean_logits).nonzero().flatten().tolist())
    return AutoAttackResult(
        robust_after=dict(zip(("clean", *of), robust, strict=True)),
        broken_by=broken_by,
        rows=rows,
        x_adv=torch.cat([record.x_adv for record in flat])[order],
        unconfirmed=rows_of("unconfirmed"),
        undefined={"clean": undefined_clean, **rows_of("undefined")},
        not_attackable=rows_of("not_attackable"),
        traces=left,
        seconds={name: sum(float(record.seconds) for record in own) for name, own in of.items()},
        asked=task.attacks,
        model_warnings=tuple(warnings),
        stopped=stopped,
    )
