"""The training loop: epochs of steps, evaluations, checkpoints, and an orderly end."""

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import cached_property
from shlex import quote
from types import FrameType
from typing import Any

import torch
from torch import nn

from fastarat.common.distributed import average_in_place, barrier, decided, largest, sum_over_processes
from fastarat.common.errors import Interrupted, WorkError
from fastarat.common.signals import answered
from fastarat.data.images.dataset import Images
from fastarat.data.images.subset import shuffled
from fastarat.data.loading.loader import Batch
from fastarat.evaluation.accuracies import accuracies
from fastarat.models.convert import plain_branch
from fastarat.models.predictions import are_right
from fastarat.models.split_batch_norm import forward, statistics_of
from fastarat.runs.metrics import attested
from fastarat.runs.run import Run
from fastarat.runs.weights import save_weights
from fastarat.training import overfitting
from fastarat.training.averaging import reestimate
from fastarat.training.events import Events
from fastarat.training.profiling.profiler import Profiler
from fastarat.training.reporting import Display, duration
from fastarat.training.state import Training
from fastarat.training.step.compiled import Step

_NEVER = sys.maxsize
"""a step that does not come"""


class Loop:
    """Drives a `Training` and writes its `Run`; nothing in here touches a tensor of the step."""

    def __init__(self, training: Training, run: Run, step: Step, compiles: bool, profiler: Profiler | None = None):
        self.training, self.run, self.step, self.profiler = training, run, step, profiler
        self.compiles, self.compiled_shapes = compiles, set()
        self.compile_seconds = 0.0
        self.config, self.world = training.config, training.parts.world
        self.stop_signal = 0
        """the signal that asked for the end"""
        self.last_save = time.monotonic()
        self.epoch_started, self.epoch_first_step = time.monotonic(), training.step

    def fit(self) -> None:
        """Train to the end. Raises `Interrupted` after a signal, `WorkError` if the loss is not finite."""
        training = self.training
        num_steps = self.config.epochs * training.loader.steps_per_epoch
        with (
            Display(num_steps, training.step, self.config.epochs, self.world.is_main) as self.display,
            self._signals(),
            closing(Events(self.run.path, training.step, self.world.is_main)) as self.events,
        ):
            if training.step == 0:
                self._save()
            while training.epoch <= self.config.epochs:
                self._epoch()
            self._finish()

    def _epoch(self) -> None:
        training, loader = self.training, self.training.loader
        self.epoch_started, self.epoch_first_step = time.monotonic(), training.step
        # A run that goes on in mid-epoch has its balance and its sums from the checkpoint.
        if training.steps_in_epoch == 0:
            training.totals.zero_()
            self._measure_balance()
        with closing(loader.batches(training.epoch, training.steps_in_epoch)) as batches:
            for batch in batches:
                if self.compiles and batch.x.shape not in self.compiled_shapes:
                    self._compile(batch)
                else:
                    training.advance(self.step, batch)
                if self.profiler:
                    self.epoch_started += self.profiler.after_step()
                self._between_steps()
        self._end_epoch()

    def _compile(self, batch: Batch) -> None:
        """The first step of a size: whoever waits is told for what, and it counts as no training speed."""
        self.compiled_shapes.add(batch.x.shape)
        started = time.monotonic()
        with self.display.waiting("compiling the step: minutes at first, seconds from the cache"):
            try:
                self.training.advance(self.step, batch)
            except WorkError:
                if not self.stop_signal:
                    raise
                # Ctrl-C reached the compiler too. Nothing was trained: the newest checkpoint stands.
                where = f"stopped while compiling, at step {self.training.step}"
                raise Interrupted(where, self.stop_signal) from None
            self._check_finite()  # waits for the device
        seconds = time.monotonic() - started
        self.compile_seconds += seconds
        height, width = batch.x.shape[2:]
        self.display.note(f"compiled for images of {width}x{height} in {duration(seconds)}")
        self.display.count_from(self.training.step)
        self.epoch_started += seconds
        self.epoch_first_step += 1

    def _between_steps(self) -> None:
        """Log lines, checkpoints and signals, which all processes take at the same step."""
        training = self.training
        in_epoch = training.steps_in_epoch < training.loader.steps_per_epoch
        # A signal may reach any process; the clock that counts is the first one's.
        main = self.world.is_main
        stop, save, line = largest(
            (self.stop_signal, main and in_epoch and self._save_is_due(), main and self.display.due()), self.world
        )
        if line:
            self._check_finite()
            self.display.line(training.step, training.epoch, self._means(), self._speed())
        if save or stop:
            self._save()
        if stop:
            raise Interrupted(f"stopped at step {training.step} (epoch {training.epoch})", stop)

    def _save_is_due(self) -> bool:
        """By this process's own clock, with which others may disagree."""
        return time.monotonic() - self.last_save >= self.config.checkpoint.every_s

    def _end_epoch(self) -> None:
        """Close the epoch: evaluate, write its line, keep the best, save."""
        training = self.training
        self._check_finite()
        entry: dict[str, Any] = {
            "epoch": training.epoch,
            "step": training.step,
            "learning_rate": training.learning_rate(training.step - 1),
            "train": self._means(),
            "images_per_s": round(self._speed(), 1),
        }
        training.seconds += time.monotonic() - self.epoch_started
        if self.compile_seconds:
            entry["compile_seconds"] = round(self.compile_seconds, 2)
            training.seconds += self.compile_seconds
            self.compile_seconds = 0.0
        last = training.epoch == self.config.epochs
        every = self.config.evaluation.every_epochs
        if last or (every and training.epoch % every == 0):
            started = time.monotonic()
            entry["evaluation"] = self._evaluate(self._deployed())
            entry["evaluation_seconds"] = round(time.monotonic() - started, 2)
        entry["seconds"] = round(training.seconds, 2)
        training.metrics.append(entry)
        self._watch_overfitting()
        training.epoch += 1
        if self.world.is_main:
            self.run.log(entry)
            self.events.write(entry)
        self.display.epoch(entry, training.step)
        self._keep_best(entry.get("evaluation"))
        self._keep_snapshot()
        if last or decided(self._save_is_due, self.world):
            self._save(epoch_is_done=True)

    def _watch_overfitting(self) -> None:
        """Mark an epoch whose net has overfitted catastrophically, and say so once."""
        metrics = self.training.metrics
        if not overfitting.is_watched(self.config) or not overfitting.has_overfitted(metrics):
            return
        metrics[-1]["catastrophic_overfitting"] = True
        if overfitting.begins(metrics):
            said = overfitting.sentence(metrics[-1])
            self.display.note(said)
            if self.world.is_main:
                self.run.record_event(said)

    def _finish(self) -> None:
        """After the last epoch: the deployable weights, of the average where there is one."""
        training = self.training
        average = training.average
        if average and average.settings.kind == "swa" and average.num_snapshots:
            batches = self.display.counted(
                training.loader.batches(self.config.epochs + 1),
                training.loader.steps_per_epoch,
                "estimating the average's batch-norm statistics",
            )
            parts = training.parts
            halves, seed = parts.method.halves, self.config.seed
            reestimate(average.model, batches, parts.attack, average.settings, parts.precision, seed, halves)
            average_in_place(statistics_of(average.model), self.world)
            result = self._evaluate(average.model)
            self._log_average(result)
            is_chosen = self.config.num_validation_images > 0
            if is_chosen and decided(lambda: attested(result) < training.best_robust, self.world):
                return
            self._write_weights(average.model)
        elif not self.config.num_validation_images:
            self._write_weights(self._deployed())

    def _log_average(self, result: dict[str, Any]) -> None:
        if self.world.is_main:
            self.run.log({"epoch": self.config.epochs, "step": self.training.step, "average": result})

    def _deployed(self) -> nn.Module:
        """The net that evaluations look at: the EMA average if there is one, else the net itself."""
        training = self.training
        self._share_statistics()
        average = training.average
        if average and average.settings.kind == "ema" and average.num_snapshots:
            return average.model
        return training.parts.model

    def _share_statistics(self) -> None:
        """Make the running statistics of all processes their mean: before they are used, and saved by one."""
        training = self.training
        for model in (training.parts.model, training.average and training.average.model):
            if model:
                average_in_place(statistics_of(model), self.world)

    def _measure_balance(self) -> None:
        """The clean branch's accuracy on training images, where the method asks for it."""
        training, parts = self.training, self.training.parts
        wanted = min(parts.method.num_balance_images, training.loader.num_images)
        if not wanted:
            return
        augment = getattr(self.config.method, "balance_augmented", False)
        self._share_statistics()
        correct = torch.zeros((), dtype=torch.int64, device=self.world.device)
        parts.model.eval()
        with torch.no_grad(), parts.precision.autocast():
            for batch in training.loader.sample(
                training.epoch, wanted, augment=augment, batch=self.config.evaluation.batch
            ):
                logits = forward(parts.model, batch.x, "clean", "eval")
                correct += are_right(logits, batch.y).sum()
        parts.model.train()
        parts.method.begin_epoch(sum_over_processes(correct, self.world) / wanted)

    @cached_property
    def _watched(self) -> Images:
        """The images that evaluations look at, in an order in which the first so many are attacked."""
        held_out, settings = self.training.held_out, self.config.evaluation
        if settings.num_images >= len(held_out.labels):
            return held_out
        return shuffled(held_out, max(settings.num_images, settings.num_clean_images), self.config.seed)

    def _evaluate(self, model: nn.Module) -> dict[str, Any]:
        training, settings = self.training, self.config.evaluation
        precision, num_images = training.parts.precision, len(self._watched.labels)
        with precision.autocast():
            clean, robust = accuracies(
                model,
                self._watched,
                training.dataset.max_value,
                len(training.dataset.classes),
                training.evaluation_attack,
                num_attacked=settings.num_images,
                batch=settings.batch,
                seed=self.config.seed,
                world=self.world,
                dtype=precision.parameter_dtype,
                weights=precision.constant_weights(model),
                advance=self.display.counter(num_images, "evaluating"),
            )
        return {
            "images": "validation" if self.config.num_validation_images else "test",
            "num_images": sum(robust.total),
            "num_clean_images": num_images,
            "steps": settings.steps,
            "clean": round(clean.percent, 3),
            "robust": round(robust.percent, 3),
            "not_attackable": robust.not_attackable,
            "undefined_logits": clean.undefined + robust.undefined,
        }

    def _keep_best(self, result: dict[str, Any] | None) -> None:
        training = self.training
        if not self.config.num_validation_images or not result:
            return
        if not decided(lambda: attested(result) > training.best_robust, self.world):
            return
        training.best_robust = attested(result)
        if self.world.is_main:
            self.run.save_best(training.state_dict())
        self._write_weights(self._deployed())

    def _keep_snapshot(self) -> None:
        every = self.config.checkpoint.history
        if every and (self.training.epoch - 1) % every == 0:
            self._share_statistics()
            if self.world.is_main:
                self.run.save_snapshot(self.training.state_dict())

    def _write_weights(self, model: nn.Module) -> None:
        self._check_finite()
        if self.world.is_main:
            save_weights(self.run.weights_file, plain_branch(model, "adv"), self.training.description)
        barrier(self.world)

    def _save(self, epoch_is_done: bool = False) -> None:
        """Write a checkpoint, unless the loss is not finite: the last good one must stay the newest."""
        training = self.training
        self._check_finite()
        self._share_statistics()
        average_in_place([training.totals], self.world)  # a checkpoint holds one process's sums
        if self.world.is_main:
            state = training.state_dict()
            if not epoch_is_done:
                state["seconds"] += time.monotonic() - self.epoch_started + self.compile_seconds
            self.run.save(state, self.config.checkpoint.keep)
        barrier(self.world)
        self.last_save = time.monotonic()

    def _check_finite(self) -> None:
        """Raise `WorkError` if a loss or the weights are not finite."""
        step = int(self.training.first_bad_step)
        if step < 0:
            step = _NEVER if self._weights_are_finite() else self.training.step
        # Any process may be the first to see it.
        step = -largest((-step,), self.world)[0]
        if step == _NEVER:
            return
        where = f"at step {step}"
        # Weights whose very next loss was not finite are no point to go on from.
        good = self.run.forget_from(step) if self.world.is_main else None
        raise WorkError(
            f"the loss is not finite {where}; the last good checkpoint is {good}: go on from it with --resume "
            f"{quote(str(self.run.path))} and a lower --optimizer.learning-rate, or --dtype fp32"
        )

    @torch.no_grad()
    def _weights_are_finite(self) -> bool:
        parts = self.training.parts
        tensors = (*parts.parameters, *statistics_of(parts.model))
        return bool(torch.stack([tensor.isfinite().all() for tensor in tensors]).all())

    def _means(self) -> dict[str, float]:
        """The epoch's metrics so far, averaged over steps and processes."""
        training = self.training
        steps = max(training.steps_in_epoch, 1) * self.world.size
        sums = sum_over_processes(training.totals.clone(), self.world) / steps
        return dict(zip(training.parts.method.metrics, (round(v, 6) for v in sums.tolist()), strict=True))

    def _speed(self) -> float:
        steps = self.training.step - self.epoch_first_step
        return steps * self.config.batch / max(time.monotonic() - self.epoch_started, 1e-9)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """A signal asks for the end; it comes after the step that runs."""

        def request(number: int, frame: FrameType | None) -> None:
            self.stop_signal = number

        with answered(request) as afterwards:
            try:
                yield
            except BaseException:
                # The launcher ends the processes that are left when one has failed: they still have to say why.
                if self.world.size > 1:
                    afterwards.update(dict.fromkeys(afterwards, signal.SIG_IGN))
                raise
