"""What is measured of a training while it goes on; the best of it is kept, and what is best is deployed."""

from functools import cached_property
from typing import Any

import torch
from torch import nn

from fastarat.common.distributed import average_in_place, barrier, decided, sum_over_processes
from fastarat.config.attack import AttackConfig
from fastarat.data.images.dataset import Images, shuffled
from fastarat.evaluation.accuracies import AccuracySettings, accuracies
from fastarat.models.convert import plain_branch
from fastarat.models.predictions import are_right
from fastarat.models.split_batch_norm import forward, statistics_of
from fastarat.runs.metrics import are_comparable, attested
from fastarat.runs.run import Run
from fastarat.runs.weights import save_weights
from fastarat.training.averaging import reestimate
from fastarat.training.reporting import Display
from fastarat.training.state import Training


class Evaluations:
    """Evaluates the nets of a `Training` and keeps the best in its `Run`; all processes take part in every method."""

    def __init__(self, training: Training, run: Run, display: Display):
        self.training, self.run, self.display = training, run, display
        self.config, self.world = training.config, training.parts.world

    def measure_balance(self) -> None:
        """The clean branch's accuracy on training images, where the method asks for it: AR-AT's balance."""
        training, parts = self.training, self.training.parts
        wanted = min(parts.method.num_balance_images, training.loader.num_images)
        if not wanted:
            return
        augment, batch_size = self.config.method.balance_augmented, self.config.evaluation.batch
        training.share_statistics()
        correct = torch.zeros((), dtype=torch.int64, device=self.world.device)
        parts.model.eval()
        with torch.no_grad(), parts.precision.autocast():
            for batch in training.loader.sample(training.epoch, wanted, augment=augment, batch=batch_size):
                logits = forward(parts.model, batch.x, "clean", "eval")
                correct += are_right(logits, batch.y).sum()
        parts.model.train()
        parts.method.begin_epoch(sum_over_processes(correct, self.world) / wanted)

    @cached_property
    def watched(self) -> Images:
        """The images that evaluations look at, in the order in which the first ones are attacked."""
        held_out, settings = self.training.held_out, self.config.evaluation
        if settings.num_images >= len(held_out.labels):
            return held_out
        return shuffled(held_out, max(settings.num_images, settings.num_clean_images), self.config.seed)

    def evaluate(self, model: nn.Module) -> dict[str, Any]:
        """The accuracies of a net as a line of `metrics.jsonl` has them, in percent."""
        training, settings = self.training, self.config.evaluation
        precision, num_images = training.parts.precision, len(self.watched.labels)
        measured = AccuracySettings(
            num_attacked=settings.num_images,
            batch=settings.batch,
            seed=self.config.seed,
            dtype=precision.parameter_dtype,
            weights=precision.constant_weights(model),
        )
        with precision.autocast():
            clean, robust = accuracies(
                model,
                self.watched,
                training.dataset.max_value,
                len(training.dataset.classes),
                training.evaluation_attack,
                measured,
                world=self.world,
                advance=self.display.counter(num_images, "evaluating"),
            )
        return {
            "images": "validation" if self.config.num_validation_images else "test",
            "num_images": sum(robust.total),
            "num_clean_images": num_images,
            "steps": settings.steps,
            "attack": _described(training.evaluation_attack),
            "dtype": precision.dtype,
            "clean": round(clean.percent, 3),
            "robust": round(robust.percent, 3),
            "not_attackable": robust.not_attackable,
            "undefined_logits": clean.undefined + robust.undefined,
            "small_logits": 2 * clean.small_logits > sum(clean.correct),
        }

    def evaluate_deployed(self) -> dict[str, Any]:
        """The accuracies of the net that would be deployed now."""
        return self.evaluate(self._deployed())

    def keep_best(self, result: dict[str, Any]) -> None:
        """Keep a checkpoint and deploy the net if its `result` on validation images is the best so far."""
        training = self.training
        if not self.config.num_validation_images:
            return
        self._forget_others(result)
        if not decided(lambda: attested(result) > training.best_robust, self.world):
            return
        training.best_robust = attested(result)
        if self.world.is_main:
            self.run.save_best(training.state_dict())
        self.deploy(self._deployed())

    def _forget_others(self, result: dict[str, Any]) -> None:
        """Seek the best anew where the run is evaluated otherwise than before: it went on with other settings."""
        measured = [line["evaluation"] for line in self.training.metrics if "evaluation" in line]
        if not all(are_comparable(before, result) for before in measured[-2:]):  # the last one is the result
            self.training.best_robust = -1.0
            self.display.note("the best epoch is sought anew: those so far were evaluated otherwise")

    def deploy_last(self) -> None:
        """After the last epoch: deploy the average where there is one, else, without validation images, the net."""
        average = self.training.average
        if average and average.settings.kind == "swa" and average.num_snapshots:
            self._deploy_average(average.model)
        elif not self.config.num_validation_images:
            self.deploy(self._deployed())

    def _deploy_average(self, model: nn.Module) -> None:
        """Deploy an SWA average with its own batch-norm statistics, unless an epoch was better on validation images."""
        training, parts = self.training, self.training.parts
        batches = self.display.counted(
            training.loader.batches(self.config.epochs + 1),
            training.loader.steps_per_epoch,
            "estimating the average's batch-norm statistics",
        )
        how = {"settings": self.config.averaging, "precision": parts.precision, "halves": parts.method.halves}
        reestimate(model, batches, parts.attack, seed=self.config.seed, **how)
        average_in_place(statistics_of(model), self.world)
        result = self.evaluate(model)
        if self.world.is_main:
            self.run.log({"epoch": self.config.epochs, "step": training.step, "average": result})
        is_chosen = self.config.num_validation_images > 0
        if is_chosen and decided(lambda: attested(result) < training.best_robust, self.world):
            return
        self.deploy(model)

    def _deployed(self) -> nn.Module:
        self.training.share_statistics()
        return self.training.deployed

    def deploy(self, model: nn.Module) -> None:
        """Write the deployable weights: the adversarial branch alone."""
        if self.world.is_main:
            save_weights(self.run.weights_file, plain_branch(model, "adv"), self.training.description)
        barrier(self.world)


def _described(attack: AttackConfig) -> str:
    """What evaluations of a run may differ in, beside the number of steps."""
    return f"{attack.norm} {attack.eps_255:g}/255 by {attack.step_255:g}/255 from {attack.start}"
