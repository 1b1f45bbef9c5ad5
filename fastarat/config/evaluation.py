"""What an evaluation of robustness is: which attacks, how strong, and how they are computed."""

from dataclasses import dataclass
from typing import Literal, get_args, get_origin, get_type_hints

from fastarat.common.errors import unknown
from fastarat.common.typed import fits, plain, wrong_count
from fastarat.config.attack import USUAL_EPS_255, Norm, doubt, short_reach

EvaluationDtype = Literal["fp32", "bf16"]
EngineName = Literal["fast", "pyautoattack"]

STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")
"""the attacks of AutoAttack"""
NUM_TARGETS = 9


@dataclass(frozen=True)
class EvaluationSettings:
    """All that the result depends on, but for the model, its images and the device."""

    attack: str = "autoattack"
    """autoattack, an attack's name, several, separated by commas, or none: clean accuracy alone"""
    norm: Norm = "linf"
    """threat model"""
    eps: float = None  # type: ignore[assignment]
    """radius of the ball in pixel units, where pixels are in [0, 1]; default 8/255 in linf, to be given in l2"""
    seed: int = 0
    """of the attacks' random numbers"""
    batch: int = 250
    """images at a time"""
    targets: int = NUM_TARGETS
    """wrong classes that apgd-t and fab-t go for"""
    steps: int = 20
    """gradient steps of pgd and cw"""
    restarts: int = 1
    """random starts of pgd and cw"""
    step: float | None = None
    """step size of pgd and cw in pixel units; None: eps / 4"""
    dtype: EvaluationDtype = "fp32"
    """bf16: the attacks see the model in bfloat16 (autocast), and what float32 confirms counts"""
    engine: EngineName = "fast"
    """pyautoattack: the attacks of this package, to compare"""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            object.__setattr__(self, name, plain(value))
        # What is still None afterwards is a problem: whoever attacks by settings finds a number.
        if self.eps is None and isinstance(self.norm, str) and self.norm in USUAL_EPS_255:
            object.__setattr__(self, "eps", USUAL_EPS_255[self.norm] / 255)

    @property
    def step_size(self) -> float:
        """The step size that is given, else a quarter of the radius, in pixel units."""
        return self.eps / 4 if self.step is None else self.step

    @property
    def names(self) -> tuple[str, ...]:
        """The attacks one by one, in the order in which they run."""
        if self.attack == "none":
            return ()
        parts = self.attack.split(",")
        return tuple(name for part in parts for name in (STANDARD if part == "autoattack" else (part,)))

    def problems(self) -> list[str]:
        """Everything wrong with the numbers and choices, each a sentence that names the fix."""
        choices = (("norm", get_args(Norm)), ("dtype", get_args(EvaluationDtype)), ("engine", get_args(EngineName)))
        found = [
            str(unknown(name, str(getattr(self, name)), known))
            for name, known in choices
            if getattr(self, name) not in known
        ]
        if self.eps is None:
            return [*found, f"eps is not given, and {self.norm} has no usual radius: give one, such as 0.5"]
        if found := [*found, *self._type_problems()]:  # or there is nothing to compare
            return found
        if self.eps <= 0:
            found.append(f"eps is {self.eps}: give a number above 0, in units where pixels are in [0, 1]")
        if self.norm == "linf" and self.eps > 1:
            found.append(f"eps is {self.eps}: give it in units where pixels are in [0, 1], as 8/255 = 0.0314")
        for name in ("batch", "targets", "steps", "restarts"):
            if fix := wrong_count(value := getattr(self, name), 1):
                found.append(f"{name} is {value}: {fix}")
        if not 0 <= self.seed < 2**64:
            found.append(f"seed is {self.seed}: give 0 or more, below 2^64")
        if self.step is not None and self.step <= 0:
            found.append(f"step is {self.step}: give a number above 0; without it a step is eps / 4")
        return found

    def _type_problems(self) -> list[str]:
        hints = get_type_hints(type(self))
        fixes = {str: "give names, separated by commas", int: "give an int"}
        return [
            f"{name} is {value!r}: {fixes.get(hints[name], 'give a finite float')}"
            for name, value in vars(self).items()
            if get_origin(hints[name]) is not Literal and not fits(value, hints[name])
        ]

    def doubts(self) -> tuple[str, ...]:
        """Why the settings themselves let robust accuracy say too much, a sentence each."""
        by_steps, eps_255 = [name for name in ("pgd", "cw") if name in self.names], 255 * self.eps
        found = [doubt(self.norm, eps_255)] if self.names else []
        if by_steps:
            found.append(short_reach(" and ".join(by_steps), self.steps, 255 * self.step_size, eps_255))
        return tuple(filter(None, found))
