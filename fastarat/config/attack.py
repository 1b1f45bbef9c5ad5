"""Which attack, how strong, and how it treats the net's batch-norms."""

import math
from dataclasses import dataclass, replace
from typing import Literal

from fastarat.common.errors import UserError, unknown
from fastarat.common.typed import not_negative

Norm = Literal["linf", "l2"]
Start = Literal["uniform", "gaussian", "none", "published-code"]
Objective = Literal["cross-entropy", "kl", "margin"]

NAMES = ("pgd",)
USUAL_EPS_255: dict[Norm, float] = {"linf": 8.0}
"""the radius where none is given; no usual one of L2 is right for all images"""
TINY_EPS_255: dict[Norm, float] = {"linf": 0.5, "l2": 2.0}
"""radii below these leave images all but as they are; most were meant in pixel units"""
ROUNDING_255 = 1e-6
"""of sizes in 1/255 of the pixel range, which are kept to 6 digits behind the point"""


@dataclass(frozen=True)
class AttackConfig:
    """The attack that makes the training images adversarial."""

    name: str = "pgd"
    """pgd (Madry et al., 2018)"""
    norm: Norm = "linf"
    """threat model"""
    eps_255: float | None = None
    """radius of the ball, in 1/255 of the pixel range; default 8 in linf, to be given in l2"""
    step_255: float | None = None
    """step size, in 1/255 of the pixel range; default eps / 4"""
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
    def known_eps_255(self) -> float:
        """The radius that is given, else the usual one. Raises `UserError` where the norm has none."""
        eps_255 = USUAL_EPS_255.get(self.norm) if self.eps_255 is None else self.eps_255
        if eps_255 is None:
            raise UserError(f"attack eps_255: {self.norm} has no usual radius; give one, such as 128 for 0.5")
        return eps_255

    @property
    def known_step_255(self) -> float:
        """The step size that is given, else a quarter of the radius. Raises as `known_eps_255` does."""
        return self.known_eps_255 / 4 if self.step_255 is None else self.step_255

    @property
    def eps(self) -> float:
        """Radius in pixel units, where pixels are in [0, 1]. Raises as `known_eps_255` does."""
        return self.known_eps_255 / 255

    @property
    def radius(self) -> float:
        """The radius of the ball that iterates are put back into: eps, or infinite where nothing is projected."""
        return self.eps if self.project else math.inf

    @property
    def step_size(self) -> float:
        """Step size in pixel units, where pixels are in [0, 1]."""
        return self.known_step_255 / 255

    def resolved(self) -> "AttackConfig":
        """The same with radius and step size as numbers. Raises as `known_eps_255` does."""
        return replace(self, eps_255=self.known_eps_255, step_255=self.known_step_255)

    def problems(self) -> list[str]:
        """Everything wrong with these settings, each a sentence that names the fix."""
        found = [] if self.name in NAMES else [str(unknown("attack", self.name, NAMES))]
        try:
            found += too_large("attack eps_255", self.norm, self.known_eps_255)
        except UserError as error:
            found.append(str(error))
        found += not_negative("attack", self, "eps_255", "step_255", "start_scale")
        if self.steps < 0 or (self.steps == 0 and self.start != "none"):
            found.append(f"attack steps is {self.steps}: give 1 or more, or 0 with start none for no attack")
        if self.start_scale != 1 and self.start != "uniform":
            found.append(f"attack start_scale is the uniform start's: leave it at 1 with start {self.start}")
        if self.start == "published-code" and not self.project:
            found.append("attack start published-code moves the ball, which project off does without: give one of them")
        return found


def too_large(name: str, norm: Norm, eps_255: float) -> list[str]:
    """A line, which names the radius, if it is wider than the pixel range, of which no Linf ball is."""
    if norm != "linf" or not 255 < eps_255 < math.inf:
        return []
    return [f"{name} is {eps_255:g}: give it in 1/255 of the pixel range, 255 at most in linf"]


def doubt(norm: Norm, eps_255: float) -> str | None:
    """What there is to ask of a radius that most who give it mean in pixel units: a sentence."""
    if not 0 < eps_255 < TINY_EPS_255.get(norm, 0.0):
        return None
    meant = f"{round(255 * eps_255, 1):g}"
    return (
        f"eps is {eps_255:g}/255 of the pixel range, which leaves images all but as they are; if {meant}/255 is meant, "
        f"flags take {meant}, in units of 1/255, and fastarat.evaluate takes eps={meant}/255."
    )


def reach_255(steps: int, step_255: float) -> float:
    """How far so many steps lead at most, in 1/255 of the pixel range as the step is."""
    return steps * (step_255 + ROUNDING_255)


def short_reach(who: str, steps: int, step_255: float, eps_255: float) -> str | None:
    """A sentence if an attack's steps do not even lead from the middle of the ball to its border."""
    if reach_255(steps, step_255) >= eps_255:
        return None
    crossing = 2 * eps_255 / steps
    return (
        f"The steps of {who} lead {steps * step_255:.3g}/255 at most in a ball of {eps_255:.3g}/255, so robust "
        f"accuracy may be too high: give more steps, or steps of {crossing:.3g}/255, which cross it."
    )
