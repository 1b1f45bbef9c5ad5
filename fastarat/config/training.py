"""Optimiser, schedule, weight averaging, evaluation during training, and checkpoints."""

from dataclasses import dataclass
from typing import Literal, get_args

from fastarat.common.errors import unknown
from fastarat.common.typed import not_negative

CompileMode = Literal["eager", "compile", "graph"]
Optimizer = Literal["sgd", "muon"]


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How weights follow their gradients; weight decay on everything, as the published code has it."""

    name: Optimizer = "sgd"
    """SGD with momentum; or, for the weights of convolutions, Muon: updates that are all but orthogonal matrices, with
    Nesterov's momentum (Jordan et al., 2024), and SGD for the rest"""
    learning_rate: float = 0.1
    """peak learning rate"""
    muon_factor: float = 0.1
    """muon: what convolutions multiply the rate by"""
    momentum: float = 0.9
    """momentum"""
    weight_decay: float = 5e-4
    """L2 penalty, added to the gradient; by Muon times the rate, and taken from the weight beside its update"""

    def problems(self) -> list[str]:
        """Everything wrong with these settings, each a sentence that names the fix."""
        names = get_args(Optimizer)
        found = [] if self.name in names else [str(unknown("optimizer", self.name, names))]
        found += not_negative("optimizer", self, "learning_rate", "muon_factor", "momentum", "weight_decay")
        if max(self.learning_rate, self.learning_rate * self.muon_factor) > 1e37:
            found.append(f"optimizer learning_rate is {self.learning_rate}: float32 ends at 3e38, give a smaller one")
        return found


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate over training."""

    name: Literal["steps", "cosine", "cyclic", "constant"] = "steps"
    """drops at milestones; half a cosine to 0; up from 0 and down to 0 in straight lines; constant"""
    milestones: tuple[int, ...] = (76, 91)
    """steps: the epochs (from 1) that begin at a rate lower by `factor`"""
    factor: float = 0.1
    """steps: what each milestone multiplies the rate by"""
    warmup_epochs: int = 0
    """epochs at the start at `warmup_factor` of the rate"""
    warmup_factor: float = 0.2
    """share of the rate during warm-up"""
    rise: float = 0.4
    """cyclic: share of training spent going up"""

    def problems(self) -> list[str]:
        """Everything wrong with these settings, each a sentence that names the fix."""
        found = not_negative("schedule", self, "factor", "warmup_epochs", "warmup_factor")
        if list(self.milestones) != sorted(self.milestones) or any(epoch < 1 for epoch in self.milestones):
            found.append(f"schedule milestones are {self.milestones}: give epochs from 1 in rising order")
        if not 0 < self.rise < 1:
            found.append(f"schedule rise is {self.rise}: give a share between 0 and 1")
        return found


@dataclass(frozen=True)
class AveragingConfig:
    """Averages of the weights, deployed instead of the last ones."""

    kind: Literal["none", "ema", "swa"] = "none"
    """none; exponential moving average; equal mean of snapshots (Izmailov et al., 2018)"""
    decay: float = 0.999
    """ema: share of the old average kept at each step"""
    start_epoch: int = 76
    """first epoch (from 1) that is averaged"""
    every_steps: int = 500
    """swa: steps between snapshots"""
    reestimate: Literal["adversarial", "published-code"] = "adversarial"
    """batch-norm statistics of the swa average: one pass, clean and adversarial images each through their
    branch; published-code: the adversarial branch alone, counting the attack's own forwards too"""

    def problems(self) -> list[str]:
        """Everything wrong with these settings, each a sentence that names the fix."""
        found = []
        if not 0 <= self.decay < 1:
            found.append(f"averaging decay is {self.decay}: give a number from 0 to below 1")
        if self.start_epoch < 1 or self.every_steps < 1:
            found.append(f"averaging start_epoch is {self.start_epoch}, every_steps {self.every_steps}: give 1 or more")
        return found


@dataclass(frozen=True)
class EvaluationConfig:
    """Accuracy during and after training: on validation images where they are split off, else on test images."""

    every_epochs: int = 1
    """epochs between evaluations; 0 evaluates after the last one only"""
    num_images: int = 1000
    """images attacked in an evaluation during training"""
    num_clean_images: int = 0
    """images whose clean accuracy it measures, if more than it attacks; those are among them"""
    steps: int = 10
    """PGD steps of an evaluation during training"""
    step_255: float | None = None
    """its step size, in 1/255 of the pixel range; default a quarter of its radius"""
    batch: int = 500
    """images at a time, of AR-AT's balance too"""
    start: Literal["uniform", "published-code"] = "uniform"
    """published-code: the ball is centred on the noisy start, as in the published evaluation"""
    eps_255: float | None = None
    """radius of the threat model that evaluations and the deployed model name, in 1/255 of the pixel range; default
    the training attack's"""

    def problems(self) -> list[str]:
        """Everything wrong with these settings, each a sentence that names the fix."""
        found = not_negative("evaluation", self, "every_epochs", "num_clean_images", "step_255", "eps_255")
        for name in ("batch", "num_images", "steps"):
            if (value := getattr(self, name)) < 1:
                found.append(f"evaluation {name} is {value}: give 1 or more")
        return found


@dataclass(frozen=True)
class CheckpointConfig:
    """When training state is saved, and how much of it is kept."""

    every_s: float = 60.0
    """seconds between checkpoints, at most; one is always written at the end"""
    notice: str | None = None
    """a file that comes when the machine is about to be taken away: a checkpoint is written as soon as it is there"""
    keep: int = 2
    """how many of the newest are kept, in addition to the best"""
    history: int = 0
    """epochs between snapshots of the weights, all kept, for `fastarat analyze`; 0 keeps none"""

    def problems(self) -> list[str]:
        """Everything wrong with these settings, each a sentence that names the fix."""
        found = not_negative("checkpoint", self, "every_s", "history")
        if self.keep < 1:
            found.append(f"checkpoint keep is {self.keep}: give 1 or more")
        return found
