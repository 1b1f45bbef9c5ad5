"""AutoAttack's warnings: plain sentences on why its numbers may say too much. They change nothing."""

import torch
from torch import Tensor

from fastarat.attacks.autoattack_state import Record, Task
from fastarat.attacks.pgd import Logits
from fastarat.models.predictions import are_right, are_undefined

# From here on the standard speaks up: unit-normalised logits of two passes apart; points of percentage by Square.
RANDOM_ABOVE = 1e-4
SQUARE_ABOVE = 0.2
NO_GRADIENT = {
    # Not of the standard, which looks at APGD-T alone.
    "apgd-ce": "the cross-entropy is flat where logits are very large, and this attack is blind there. "
    "apgd-t, whose loss does not feel the scale of logits, makes up for it, unless it is warned of too.",
    "apgd-t": "the model hides its gradient, and robust accuracy against attacks that follow it is too high.",
}


@torch.no_grad()
def randomness(logits_of: Logits, task: Task, clean_logits: Tensor) -> str:
    """How the model differs from itself in five passes over the first batch, the one that was made included; or ''."""
    x, y = task.pixels(slice(task.batch)), task.labels[: task.batch]
    passes = torch.stack([clean_logits[: task.batch], *(logits_of(x) for _ in range(4))])
    passes, right = passes.nan_to_num(0, 0, 0), [int(are_right(logits, y).sum()) for logits in passes]
    units = passes / (passes.norm(dim=2, keepdim=True) + 1e-10)
    apart = max(float((a - b).norm(dim=1).max()) for a in units for b in units)
    if apart <= RANDOM_ABOVE and len(set(right)) == 1:
        return ""
    return (
        f"The model is randomised: in 5 passes over the first {len(y)} images {min(right)} to {max(right)} were right, "
        f"and normalised logits differed by up to {apart:.1e}. The standard AutoAttack does not average over a model's "
        "randomness, so robust accuracy may be too high."
    )


def probabilities(task: Task, clean_logits: Tensor) -> str:
    """A warning if the first batch's logits look like probabilities; or ''."""
    first = clean_logits[: task.batch]
    sums_to_1 = (first.sum(1) - 1).abs().max() < 1e-5
    if not (first.max() < 1 + 1e-5 and first.min() > -1e-5 and sums_to_1):
        return ""
    return (
        "The model seems to return probabilities, where AutoAttack wants logits: gradients through a softmax vanish, "
        "so robust accuracy may be too high. Evaluate the model without its softmax."
    )


def undefined_clean(clean_logits: Tensor) -> str:
    """A warning if the logits of clean images predict nothing; or ''."""
    return _undefined(int(are_undefined(clean_logits).sum()), "as they are")


def afterthoughts(task: Task, robust: list[Tensor], of: dict[str, list[Record]]) -> list[str]:
    """What the attacks themselves give reason to say."""
    return [
        *_no_gradient(task, robust[-1], of),
        *(_undefined(_count(own, "undefined"), f"under {name}") for name, own in of.items()),
        _gained_by_square(task, robust, list(of)),
        *(_unconfirmed(_count(own, "unconfirmed"), name) for name, own in of.items()),
    ]


def _count(records: list[Record], field: str) -> int:
    return sum(len(getattr(record, field)) for record in records)


def _no_gradient(task: Task, robust: Tensor, of: dict[str, list[Record]]) -> list[str]:
    """What searches began without a gradient, what images had none at all, and which robust images were never searched:
    a warning for each attack."""
    found = [" ".join([*_zero_gradients(name, own), *_not_attackable(name, own)]) for name, own in of.items()]
    found = [warning for warning in found if warning]
    never = robust.clone()
    for own in of.values():
        rows = torch.cat([record.not_attackable for record in own])
        never &= torch.zeros_like(never).index_fill(0, rows, True)
    if of and never.any():
        found[-1] += f" No attack could search {int(never.sum())} of the {int(robust.sum())} robust images."
        if "square" not in task.attacks:
            found[-1] += " Add square, which needs no gradient."
    return found


def _zero_gradients(name: str, own: list[Record]) -> list[str]:
    zero, searches = torch.stack([record.zero_gradients for record in own]).sum(0).tolist()
    if not zero or name not in NO_GRADIENT:
        return []
    return [f"{zero} of {searches} searches of {name} began with a gradient of exactly zero: {NO_GRADIENT[name]}"]


def _not_attackable(name: str, own: list[Record]) -> list[str]:
    number, what = _count(own, "not_attackable"), "finite margin to lower" if name == "square" else "gradient to follow"
    if not number:
        return []
    return [
        f"{number} of {_count(own, 'rows')} images were not attackable by {name}, which found no {what} at any point "
        "that it tried: they count as robust to it, without evidence."
    ]


def _undefined(number: int, when: str) -> str:
    if not number:
        return ""
    return (
        f"The model's logits are NaN, or infinite for several classes, for {number} image{'s' if number > 1 else ''} "
        f"{when}: counted as misclassified. Check the model's precision, and its roots and logarithms."
    )


def _gained_by_square(task: Task, robust: list[Tensor], names: list[str]) -> str:
    at = names.index("square") if "square" in names else 0
    gained = 100 * float((robust[at] & ~robust[at + 1]).sum()) / len(task.labels) if at else 0
    if gained <= SQUARE_ABOVE:
        return ""
    return (
        f"Square, which needs no gradient, lowered robust accuracy by {gained:.1f} points after the attacks with "
        "gradients: the model probably hides its gradient, and true robust accuracy may be lower."
    )


def _unconfirmed(number: int, name: str) -> str:
    if not number:
        return ""
    return (
        f"{number} images that {name} found were not confirmed: run again in float32, they are classified "
        "correctly, or they lie outside the ball or [0, 1]. They count as robust to it."
    )
