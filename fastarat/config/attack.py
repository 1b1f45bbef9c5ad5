"""Which attack, how strong, and how it treats the net's batch-norms."""

import math
from dataclasses import dataclass
from typing import Literal

from fastarat.common.errors import unknown
from fastarat.common.typed import not_negative

Norm = Literal["linf", "l2"]
Start = Literal["uniform", "gaussian", "none", "published-code"]
Objective = Literal["cross-entropy", "kl", "margin"]

NAMES = ("pgd",)


@dataclass(frozen=True)
class AttackConfig:
    """The attack that makes the training images adversarial."""

    name: str = "pgd"
    """pgd (Madry et al., 2018)"""
    norm: Norm = "linf"
    """threat model"""
    eps_255: float = 8.0
    """radius of the ball, in 1/255 of the pixel range"""
    step_255: float = 2.0
    """step size, in 1/255 of the pixel range"""
    steps: int = 10
    """gradient steps; 0 with start none: no attack"""
    start: Start = "uniform"
    """uniform in the ball; gaussian: 0.001 N(0, 1) in each pixel; none: the image itself; published-code: uniform,
    and the ball moves along"""
    batch_norm: Literal["train", "frozen", "eval"] = "train"
    """batch statistics and update the running ones; batch statistics only; running statistics"""
    objective: Objective = "cross-entropy"
    """what the attack raises: the cross-entropy, KL(clean ‖ adversarial), or the margin of a wrong class"""
    start_scale: float = 1.0
    """radius of the uniform start, in eps"""
    project: bool = True
    """put every iterate back into the ball; off: only into [0, 1]"""

    @property
    def eps(self) -> float:
        """Radius in pixel units, where pixels are in [0, 1]."""
        return self.eps_255 / 255

    @property
    def radius(self) -> float:
        """The radius of the ball that iterates are put back into: eps, or infinite where nothing is projected."""
        return self.eps if self.project else math.inf

    @property
    def step(self) -> float:
        """Step size in pixel units, where pixels are in [0, 1]."""
        return self.step_255 / 255

    def problems(self) -> list[str]:
        """Everything wrong with these settings, each a sentence that names the fix."""
        found = [] if self.name in NAMES else [str(unknown("attack", self.name, NAMES))]
        found += not_negative("attack", self, "eps_255", "step_255", "start_scale")
        if self.steps < 0 or (self.steps == 0 and self.start != "none"):
            found.append(f"attack steps is {self.steps}: give 1 or more, or 0 with start none for no attack")
        if self.start_scale != 1 and self.start != "uniform":
            found.append(f"attack start_scale is the uniform start's: leave it at 1 with start {self.start}")
        if self.start == "published-code" and not self.project:
            found.append("attack start published-code moves the ball, which project off does without: give one of them")
        return found
