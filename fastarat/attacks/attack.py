"""What an attack is to an evaluation: a function from a batch to what it found, and its cost."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastarat.attacks.cuda_graphs import Mover, directly
from fastarat.attacks.pgd import Logits
from fastarat.common.errors import UserError
from fastarat.config.evaluation import EvaluationSettings
from fastarat.models.predictions import are_right


@dataclass(frozen=True)
class Conditions:
    """What an attack is given in addition to a batch of B images."""

    settings: EvaluationSettings
    clean_logits: Tensor | None = None
    """[B, K], to save their computation"""
    mover: Mover = directly
    """calls what leads from one iterate to the next"""
    show: Callable[[int, Any], None] = lambda iteration, state: None
    """is given the number and the state of each iterate of APGD, from 0 for the start"""


class Found(NamedTuple):
    """What an attack gives for B images."""

    images: Tensor
    """a misclassified image for each that is broken; of the others any, [B, C, H, W]"""
    broken: Tensor
    """bool [B]"""
    attackable: Tensor
    """whether any point that was tried, of a finite margin, had a direction to follow that was known in full: bool [B].
    An image that was neither broken nor attackable is no evidence of robustness."""


class Cost(NamedTuple):
    """What an image that survives an attack costs."""

    passes: float
    """through the model, a backward counted as a forward"""
    forwards: float
    """the forward passes among them"""


@dataclass(frozen=True)
class Attack:
    """One line of the registry."""

    run: Callable[[Logits, Tensor, Tensor, Tensor, Conditions], Found]
    """from the model (images [B, C, H, W] in [0, 1] to logits [B, K]), images, labels, rows (int64 [B]: the images'
    places in the evaluated set, on which their random numbers depend) and conditions to what was found"""
    cost: Callable[[EvaluationSettings], Cost]
    follows_gradient: bool = True
    """whether the model needs a gradient by its images"""
    fewest_classes: int = 0
    """of a model, where the attack goes for `targets` wrong classes, which needs one class more too; 0: it does not"""
    feels_scale: bool = False
    """whether it follows the cross-entropy, whose direction depends on a factor on the logits"""
    uses_mover: bool = False
    """whether every pass of it is in a move of the conditions' `mover`, so that it can run captured"""


def nothing_found(x: Tensor) -> Found:
    """What is known of images [B, C, H, W] before the first search."""
    none = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    return Found(x.clone(), none, none.clone())


def written(found: Found, places: Tensor, part: Found) -> Found:
    """`found` with what another search has found of the images at `places` (int64)."""
    part = part._replace(attackable=part.attackable | found.attackable[places])
    return Found(*(whole.index_copy(0, places, new) for whole, new in zip(found, part, strict=True)))


def searched(found: Found, times: int, search: Callable[[int, Tensor], Found]) -> Found:
    """`found` after up to `times` further searches: each is given its number and the places (int64) of what is left."""
    for number in range(times):
        left = (~found.broken).nonzero().flatten()
        if not len(left):
            break
        found = written(found, left, search(number, left))
    return found


def require_classes(name: str, num_classes: int, targets: int, least: int) -> None:
    """Raise `UserError` if a model has too few classes for the attack `name`, which needs `least` for itself and one
    more than it has targets."""
    needed = max(targets + 1, least)
    if num_classes < needed:
        fix = "give attacks without targets, as apgd-ce and square"
        if num_classes >= least:
            fix = f"give {num_classes - 1} targets, which the result names, or leave {name} out of the attacks"
        raise UserError(
            f"{name} takes {targets} wrong classes and needs {needed} classes; the model has {num_classes}: {fix}"
        )


def likeliest_wrong_classes(clean_logits: Tensor, num_targets: int) -> Tensor:
    """Classes of the 2nd, 3rd, … largest of logits [B, K]: int64 [B, num_targets]; of images that are classified
    correctly these are wrong ones."""
    return clean_logits.topk(num_targets + 1).indices[:, 1:]


def towards_targets(
    name: str,
    search: Callable[[int, Tensor, Tensor], Found],
    logits_of: Logits,
    x: Tensor,
    y: Tensor,
    conditions: Conditions,
    *,
    least: int,
) -> Found:
    """One search towards each of the `targets` wrong classes that the clean image is likeliest taken for, on the images
    that the searches before left. An image that is misclassified as it is counts as broken, by itself.

    `search` is given its number, the places of the images (int64), and their targets. Raises `UserError` as
    `require_classes`.
    """
    clean_logits, num_targets = conditions.clean_logits, conditions.settings.targets
    if clean_logits is None:
        with torch.no_grad():
            clean_logits = logits_of(x)
    require_classes(name, clean_logits.shape[1], num_targets, least)
    targets = likeliest_wrong_classes(clean_logits, num_targets)
    found = nothing_found(x)._replace(broken=~are_right(clean_logits, y))
    return searched(found, num_targets, lambda number, left: search(number, left, targets[left, number]))
