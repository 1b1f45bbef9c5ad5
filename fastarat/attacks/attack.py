"""What an attack is to an evaluation: a function from a batch to what it found, and its cost."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from fastarat.attacks.cuda_graphs import Mover, directly
from fastarat.attacks.found import Found
from fastarat.attacks.pgd import Logits
from fastarat.config.evaluation import EvaluationSettings

Observer = Callable[[int, Any], None]
"""is given the number and the state of each iterate of APGD, from 0 for the start"""


@dataclass(frozen=True)
class Conditions:
    """What an attack on a batch of B images is given besides them."""

    settings: EvaluationSettings
    clean_logits: Tensor | None = None
    """[B, K], to save their computation"""
    mover: Mover = directly
    """calls what leads from one iterate to the next"""
    show: Observer = lambda iteration, state: None


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
    uses_mover: bool = False
    """whether every pass of it is in a move of the conditions' `mover`, so that it can run captured"""
