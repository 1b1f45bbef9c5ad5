"""A training run in memory: everything a checkpoint holds."""

import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastarat.common.distributed import average_in_place, largest, sum_over_processes
from fastarat.common.errors import UserError, first_line
from fastarat.config import Config
from fastarat.config.attack import AttackConfig
from fastarat.data.images.classes import in_order_of
from fastarat.data.images.dataset import Dataset, Images, other_images
from fastarat.data.loading.loader import Batch, Loader
from fastarat.models.split_batch_norm import statistics_of
from fastarat.runs.deployed import load_teacher
from fastarat.runs.weights import Description
from fastarat.training.averaging import Average
from fastarat.training.step.sgd import learning_rate
from fastarat.training.step.train_step import Controls, Step, StepParts

_NEVER = sys.maxsize
"""a step that does not come"""


@dataclass(kw_only=True)
class Training:
    """The state of a run, at its beginning. `step` counts finished steps, `epoch` is the one in progress (from 1)."""

    config: Config
    dataset: Dataset
    held_out: Images
    """what evaluations during training look at: validation images, or the test set"""
    extra: Dataset | None = None
    """where the extra training images are from"""
    loader: Loader
    parts: StepParts
    average: Average | None = field(init=False)
    controls: Controls = field(init=False)
    totals: Tensor = field(init=False)
    """sums of the method's metrics over the epoch's steps: float64 [number of metrics], on the device"""
    first_bad_step: Tensor = field(init=False)
    """the first step whose loss was not finite, an int64 scalar on the device; -1 for none"""
    step: int = field(default=0, init=False)
    epoch: int = field(default=1, init=False)
    seconds: float = field(default=0.0, init=False)
    best_robust: float = field(default=-1.0, init=False)
    metrics: list[dict[str, Any]] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        averaging, parts, device = self.config.averaging, self.parts, self.parts.world.device
        self.average = Average(averaging, parts.model) if averaging.kind != "none" else None
        self.controls = Controls.of(parts)
        self.totals = torch.zeros(len(parts.method.metrics), dtype=torch.float64, device=device)
        self.first_bad_step = torch.full((), -1, dtype=torch.int64, device=device)

    @property
    def steps_in_epoch(self) -> int:
        """How many steps of the current epoch are done."""
        return self.step - (self.epoch - 1) * self.loader.steps_per_epoch

    @property
    def evaluation_attack(self) -> AttackConfig:
        """The attack of evaluations during training: cross-entropy, in the ball of the threat model."""
        attack, settings = self.config.attack, self.config.evaluation
        return AttackConfig(
            norm=attack.norm,
            eps_255=self.config.eps_255,
            steps=settings.steps,
            step_255=settings.step_255,
            start=settings.start,
            batch_norm="eval",
        ).resolved()

    @property
    def description(self) -> Description:
        """What the deployable model is."""
        dataset, config = self.dataset, self.config
        height, width, channels = dataset.image_shape
        return Description(
            config.model.name,
            len(dataset.classes),
            channels,
            (height, width),
            dataset.max_value,
            dataset.classes,
            dataset.name,
            config.attack.norm,
            config.eps_255,
            config.method.name,
            config.averaging.kind,
            epoch=self.epoch - 1,
            central_share=config.augment.central_share if config.size else None,
        )

    def learning_rate(self, step: int) -> float:
        """The rate of step `step`, from 0."""
        config, peak = self.config, self.config.optimizer.learning_rate
        return learning_rate(
            config.schedule, peak, step, steps_per_epoch=self.loader.steps_per_epoch, epochs=config.epochs
        )

    @property
    def deployed(self) -> nn.Module:
        """The net that is evaluated and deployed: the EMA average if there is one, else the net itself."""
        average = self.average
        if average and average.settings.kind == "ema" and average.num_snapshots:
            return average.model
        return self.parts.model

    def share_statistics(self) -> None:
        """Make the running statistics of all processes their mean: before they are used, and saved by one."""
        for model in (self.parts.model, self.average and self.average.model):
            if model:
                average_in_place(statistics_of(model), self.parts.world)

    def epoch_metrics(self) -> dict[str, float]:
        """The epoch's metrics so far, averaged over steps and processes."""
        world, metrics = self.parts.world, self.parts.method.metrics
        sums = sum_over_processes(self.totals.clone(), world) / (max(self.steps_in_epoch, 1) * world.size)
        return dict(zip(metrics, (round(value, 6) for value in sums.tolist()), strict=True))

    @torch.no_grad()
    def first_not_finite(self) -> int | None:
        """The first step of any process whose loss was not finite, or now, where the weights are not; None: all are.

        Waits for the device.
        """
        step = int(self.first_bad_step)
        if step < 0:
            tensors = (*self.parts.parameters, *statistics_of(self.parts.model))
            # Its norm is not finite where an element is not: few launches for all tensors together.
            are_finite = torch.stack(torch._foreach_norm(tensors, float("inf"))).isfinite().all()
            step = _NEVER if are_finite else self.step
        step = -largest((-step,), self.parts.world)[0]
        return None if step == _NEVER else step

    def begin(self) -> None:
        """What a new run does before its first step, and one that goes on has behind it: the method's teacher is
        loaded, where it starts from one. Raises `UserError` if there is none, or it does not fit."""
        source = self.config.method.starts_from
        if source is not None:
            teacher = load_teacher(source, self.config.recipe, self.description)
            self.parts.method.begin_training(self.parts.model, teacher)

    def advance(self, step: Step, batch: Batch) -> dict[str, Tensor]:
        """Train on one batch and count it; returns the step's metrics. The host waits for nothing here."""
        self.controls.learning_rate.fill_(self.learning_rate(self.step))
        self.controls.step.fill_(self.step)
        metrics = step(batch)
        self._count(metrics)
        self.step += 1
        if self.average:
            self.average.update(self.step, self.epoch)
        return metrics

    @torch.no_grad()
    def _count(self, metrics: dict[str, Tensor]) -> None:
        self.totals.add_(torch.stack([metrics[name] for name in self.parts.method.metrics]))
        first_bad = (self.first_bad_step < 0) & ~metrics["loss"].isfinite()
        self.first_bad_step.copy_(torch.where(first_bad, self.controls.step, self.first_bad_step))

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on, and what the model in it is."""
        cuda = torch.cuda.is_available()
        return {
            "description": asdict(self.description),
            "fingerprint": self.dataset.fingerprint,
            "labels_fingerprint": self.dataset.labels_fingerprint,
            "extra_fingerprint": self.extra.fingerprint if self.extra else None,
            "batch_norm": self.config.method.batch_norm,
            "step": self.step,
            "epoch": self.epoch,
            "seconds": self.seconds,
            "best_robust": self.best_robust,
            "metrics": self.metrics,
            "model": self.parts.model.state_dict(),
            "method": self.parts.method.state_dict(),
            "momenta": self.parts.momenta,
            "precision": self.parts.precision.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "totals": self.totals,
            "random": {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if cuda else []},
        }

    def load_state_dict(self, state: dict[str, Any], source: str) -> None:
        """Go on from `state_dict`'s point; `source` names it in the `UserError` if it is another run's."""
        parts = self.parts
        if other_images(self.dataset, state.get("fingerprint"), state.get("labels_fingerprint")):
            raise UserError(
                f"{source} was trained on other images than {self.config.data} holds, or on these "
                "stored in another way: give its own --data"
            )
        if state.get("extra_fingerprint") != (self.extra.fingerprint if self.extra else None):
            found = self.config.extra.data or "none"
            raise UserError(f"{source} was trained with other extra images than {found}: give its own --extra.data")
        try:
            parts.model.load_state_dict(state["model"])
            parts.method.load_state_dict(state["method"])
            for mine, saved in zip(parts.momenta, state["momenta"], strict=True):
                mine.copy_(saved)
            parts.precision.load_state_dict(state["precision"])
            if self.average:
                self.average.load_state_dict(state["average"])
            self.totals.copy_(state["totals"])
            for name in ("step", "epoch", "seconds", "best_robust", "metrics"):
                setattr(self, name, state[name])
            torch.set_rng_state(state["random"]["cpu"])
            if torch.cuda.is_available() and len(state["random"]["cuda"]) == torch.cuda.device_count():
                torch.cuda.set_rng_state_all(state["random"]["cuda"])
        except (KeyError, RuntimeError, TypeError, ValueError, AttributeError, AssertionError) as error:
            reason = first_line(error)
            raise UserError(f"{source} does not fit this configuration: {reason}") from error
        if not 0 <= self.steps_in_epoch <= self.loader.steps_per_epoch:
            raise UserError(f"{source} does not fit this configuration: step {self.step} is not in epoch {self.epoch}")
        if self.epoch > self.config.epochs + 1:
            raise UserError(f"{source} has {self.epoch - 1} epochs behind it: give --epochs {self.epoch - 1} or more")


def in_order_of_state(dataset: Dataset, state: dict[str, Any], source: Path) -> Dataset:
    """`dataset` with its classes in the order in which the training of a `state`, kept in the file `source`, has them.

    Raises `UserError` where they are others, or the state does not say what it is.
    """
    classes = Description.from_dict(state.get("description"), str(source)).classes
    return in_order_of(dataset, classes, str(source), "give its own --data")
