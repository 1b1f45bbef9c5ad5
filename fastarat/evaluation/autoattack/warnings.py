"""AutoAttack's warnings: plain sentences on why its numbers may say too much. They change nothing."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastarat.attacks.pgd import Logits
from fastarat.attacks.registry import ATTACKS
from fastarat.evaluation.autoattack.state import BatchOutcome, Task
from fastarat.models.predictions import SMALL_SPAN, are_right, are_undefined, spans, widened

# From here on the standard speaks up: unit-normalised logits of two passes apart; points of percentage by Square; and
# as long as probabilities in float32 are no further from adding up to 1.
RANDOM_ABOVE = 1e-4
SQUARE_ABOVE = 0.2
PROBABILITY_ROOM = 1e-5
NO_GRADIENT = {
    # Not of the standard, which looks at APGD-T alone.
    "apgd-ce": "the cross-entropy is flat where logits are very large, and this attack is blind there. "
    "apgd-t, whose loss does not feel the scale of logits, makes up for it, unless it is warned of too.",
    "apgd-t": "the model hides its gradient, and robust accuracy against attacks that follow it is too high.",
}


class Traces(NamedTuple):
    """What one attack left behind that gives reason to warn; places among all images, int64."""

    num_images: int
    """that it saw"""
    not_attackable: Tensor
    """places of the images of which it had no direction to follow at any point"""
    undefined: Tensor
    """places of the images that it broke by logits that predict nothing"""
    unconfirmed: Tensor
    """places of what it found and the check refused"""
    zero_gradients: Tensor
    """searches of an APGD that began with a gradient of zero, and all its searches: int64 [2]"""


def traces(outcomes: Sequence[BatchOutcome]) -> Traces:
    """The traces of an attack from what it did on one batch or more."""
    places = ("not_attackable", "undefined", "unconfirmed")
    return Traces(
        num_images=sum(len(outcome.rows) for outcome in outcomes),
        zero_gradients=torch.stack([outcome.zero_gradients for outcome in outcomes]).sum(0),
        **{name: torch.cat([getattr(outcome, name) for outcome in outcomes]) for name in places},
    )


def with_further_start(first: Traces, more: Traces, rows: Tensor, broken: Tensor) -> Traces:
    """The traces of one attack from two starts. `more` are those of the second, on the images `rows` that the first
    left and of which it broke those at `broken`.
    """
    missed, refused = rows[more.not_attackable], torch.cat([first.unconfirmed, rows[more.unconfirmed]]).unique()
    return Traces(
        num_images=first.num_images,
        # An image was not attackable if it was so from every start.
        not_attackable=first.not_attackable[torch.isin(first.not_attackable, missed)],
        undefined=torch.cat([first.undefined, rows[more.undefined]]).unique(),
        unconfirmed=refused[~torch.isin(refused, broken)],
        zero_gradients=first.zero_gradients + more.zero_gradients,
    )


@torch.no_grad()
def randomness(logits_of: Logits, task: Task, clean_logits: Tensor) -> str:
    """How the model differs from itself in five passes over the first batch, the one that was made included; or ''."""
    first = slice(task.settings.batch)
    x, y = task.pixels(first), task.labels[first]
    passes = torch.stack([clean_logits[first], *(logits_of(x) for _ in range(4))])
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
    # Probabilities p that are each rounded by a part of eps / 2 add up to 1 within eps / 2, since sum p is 1.
    room = max(PROBABILITY_ROOM, torch.finfo(clean_logits.dtype).eps)
    first = widened(clean_logits[: task.settings.batch])
    sums_to_1 = (first.sum(1) - 1).abs().max() < room
    if not (first.max() < 1 + room and first.min() > -room and sums_to_1):
        return ""
    return (
        "The model seems to return probabilities, where AutoAttack wants logits: gradients through a softmax vanish, "
        "so robust accuracy may be too high. Evaluate the model without its softmax."
    )


def small_logits(task: Task, clean_logits: Tensor) -> str:
    """A warning if no attack makes up for the ones that small logits lead astray; or ''.

    Of small logits all probabilities are alike, and the cross-entropy's gradient pushes all wrong classes, not the one
    that is near. Two classes have one wrong one.
    """
    by_gradient = [name for name in task.settings.names if ATTACKS[name].follows_gradient]
    misled = [name for name in by_gradient if ATTACKS[name].feels_scale]
    right = clean_logits[are_right(clean_logits, task.labels)]
    if not misled or misled != by_gradient or clean_logits.shape[1] == 2 or not len(right):
        return ""
    span = float(spans(right).median())
    if not span < SMALL_SPAN:
        return ""
    return (
        f"The model's logits are small (those of an image span {span:.2g}, in the median): the cross-entropy, which "
        f"{' and '.join(misled)} follow{'s' * (len(misled) == 1)}, then pushes all wrong classes alike, so robust "
        "accuracy is probably too high. Give the attack cw or autoattack, which find the same at any scale."
    )


def undefined_clean(clean_logits: Tensor) -> str:
    """A warning if the logits of clean images predict nothing; or ''."""
    return _undefined(int(are_undefined(clean_logits).sum()), "as they are")


def afterthoughts(asked: Sequence[str], flags: dict[str, Tensor], of: dict[str, Traces]) -> tuple[str, ...]:
    """The warnings that the attacks themselves give reason to.

    `asked`: their names; `flags`: which images are right, bool [N], after `clean` and after each attack that has begun.
    """
    robust = list(flags.values())
    said = [
        *_no_gradient(asked, robust[-1], of),
        *(_undefined(len(own.undefined), f"under {name}") for name, own in of.items()),
        _gained_by_square(robust, list(of)),
        *(
            f"{len(own.unconfirmed)} images that {name} found were not confirmed: run again in float32, they are "
            "classified correctly, or they lie outside the ball or [0, 1]. They count as robust to it."
            for name, own in of.items()
            if len(own.unconfirmed)
        ),
    ]
    return tuple(filter(None, said))


def _no_gradient(asked: Sequence[str], robust: Tensor, of: dict[str, Traces]) -> list[str]:
    """What searches began without a gradient, what images had none at all, and which robust images were never searched:
    a warning for each attack."""
    found = [warning for warning in (_of_one_attack(name, own) for name, own in of.items()) if warning]
    if never := int(never_searched(robust, of).sum()):
        found[-1] += f" No attack could search {never} of the {int(robust.sum())} robust images."
        if "square" not in asked:
            found[-1] += " Add square, which needs no gradient."
    return found


def never_searched(robust: Tensor, of: dict[str, Traces]) -> Tensor:
    """Which of the images `robust` (bool [N]) none of the attacks could search: bool [N]; none where none attacked."""
    never = robust.clone()
    for own in of.values():
        never &= torch.zeros_like(never).index_fill(0, own.not_attackable, True)
    return never if of else torch.zeros_like(robust)


def _of_one_attack(name: str, own: Traces) -> str:
    said, number, (zero, searches) = [], len(own.not_attackable), own.zero_gradients.tolist()
    if zero and name in NO_GRADIENT:
        said += [f"{zero} of {searches} searches of {name} began with a gradient of exactly zero: {NO_GRADIENT[name]}"]
    if number:
        what = "gradient free of NaN to follow" if ATTACKS[name].follows_gradient else "finite margin to lower"
        said += [
            f"{number} of {own.num_images} images were not attackable by {name}, which found no {what} at any point "
            "that it tried: they count as robust to it, without evidence."
        ]
    return " ".join(said)


def _undefined(number: int, when: str) -> str:
    if not number:
        return ""
    return (
        f"The model's logits are NaN, or infinite for several classes, for {number} image{'s' if number > 1 else ''} "
        f"{when}: counted as misclassified. Check the model's precision, and its roots and logarithms."
    )


def _gained_by_square(robust: list[Tensor], names: list[str]) -> str:
    at = names.index("square") if "square" in names else 0
    gained = 100 * float((robust[at] & ~robust[at + 1]).sum()) / len(robust[0]) if at else 0
    if gained <= SQUARE_ABOVE:
        return ""
    return (
        f"Square, which needs no gradient, lowered robust accuracy by {gained:.1f} points after the attacks with "
        "gradients: the model probably hides its gradient, and true robust accuracy may be lower."
    )
