"""The training loop: when what is done. Steps, evaluations, checkpoints, and an orderly end."""

import time
from collections.abc import Sequence
from contextlib import closing
from shlex import quote
from typing import Any

from fastarat.common.distributed import LONGEST_STEP, average_in_place, barrier, decided, gathered, largest
from fastarat.common.durations import duration
from fastarat.common.energy import EnergyMeter
from fastarat.common.energy import total as energy_of
from fastarat.common.errors import Interrupted, WorkError
from fastarat.common.processes import is_first_here
from fastarat.data.loading.loader import Batch
from fastarat.runs.metrics import has_overfitted, may_overfit, overfitting_begins, overfitting_sentence
from fastarat.runs.run import Run
from fastarat.training.compiling.compile_times import step_key
from fastarat.training.compiling.compiler_options import num_kept
from fastarat.training.compiling.worth_compiling import expected, keep_compile_seconds
from fastarat.training.evaluations import Evaluations
from fastarat.training.loggers.logger import AUTO, Loggers
from fastarat.training.profiling.profiler import Profiler
from fastarat.training.reporting import Display
from fastarat.training.requests import Requests
from fastarat.training.state import Training
from fastarat.training.step.train_step import Step


class Loop:
    """Drives a `Training` and writes its `Run`; nothing in here touches a tensor of the step."""

    def __init__(
        self,
        training: Training,
        run: Run,
        step: Step,
        *,
        compiles: bool,
        profiler: Profiler | None = None,
        loggers: Sequence[str] = (AUTO,),
    ):
        self.training, self.run, self.step, self.profiler = training, run, step, profiler
        self.loggers = Loggers(loggers, run)
        self.compiles, self.compiled_shapes = compiles, set()
        self.compile_seconds = 0.0
        self.config, self.world = training.config, training.parts.world
        num_steps = self.config.epochs * training.loader.steps_per_epoch
        self.display = Display(num_steps, training.step, self.config.epochs, self.world.is_main)
        self.evaluations = Evaluations(training, run, self.display)
        self.display.look, self.display.look_together = self._stop_evaluating, self._stop_evaluating_together
        self.requests = Requests(self.config.checkpoint.notice)
        self.last_save = time.monotonic()
        self.epoch_started, self.epoch_first_step = time.monotonic(), training.step
        self.energy = EnergyMeter(self.world.device, packages=is_first_here())

    def fit(self) -> None:
        """Train to the end. Raises `Interrupted` after a signal, `WorkError` if the loss is not finite."""
        training = self.training
        with (
            self.display,
            self.requests.heard(alone=self.world.size == 1),
            self.loggers,
        ):
            if self.world.is_main:
                self.loggers.open(training.step)
            if training.step == 0:
                self._save()
            while training.epoch <= self.config.epochs:
                self._epoch()
            self._check_finite()
            try:
                self.evaluations.deploy_last()
            except Interrupted as stopped:  # the epoch's end is saved
                raise self._stopped("evaluating", stopped.number) from stopped
            self.run.finish_writing()

    def _epoch(self) -> None:
        training, loader = self.training, self.training.loader
        self.epoch_started, self.epoch_first_step = time.monotonic(), training.step
        # A run that goes on in mid-epoch has its balance and its sums from the checkpoint.
        if training.steps_in_epoch == 0:
            training.totals.zero_()
            self.evaluations.measure_balance()
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
        """The first step of a size: it shows what is being waited for, and its time does not count as training."""
        self.compiled_shapes.add(batch.x.shape)
        started = time.monotonic()
        key = step_key(self.training.parts, self.config, (batch.x.shape[2], batch.x.shape[3]))
        kept_before = num_kept()
        seconds, why = expected(self.training, (batch.x.shape[2], batch.x.shape[3]))
        usual = "minutes at first, seconds from the cache" if seconds is None else f"about {duration(seconds)}, {why}"
        with self.display.waiting(f"compiling the step: {usual}", seconds):
            try:
                self.training.advance(self.step, batch)
            except WorkError:
                if not self.requests.stop_signal:
                    raise
                # Ctrl-C reached the compiler too. Nothing was trained: the newest checkpoint stands.
                where = f"stopped while compiling, at step {self.training.step}"
                raise Interrupted(where, self.requests.stop_signal) from None
            self._check_finite()  # waits for the device
        seconds = time.monotonic() - started
        self.compile_seconds += seconds
        height, width = batch.x.shape[2:]
        if self.compiles:  # it may have fallen back
            if self.world.is_main:
                keep_compile_seconds(self.training, key, seconds, was_kept=num_kept() > kept_before)
            self.display.note(f"compiled for images of {width}x{height} in {duration(seconds)}")
        self.display.count_from(self.training.step)
        self.epoch_started += seconds
        self.epoch_first_step += 1

    def _between_steps(self) -> None:
        """Log lines, checkpoints and signals, which all processes take at the same step."""
        training = self.training
        in_epoch = training.steps_in_epoch < training.loader.steps_per_epoch
        # A signal or a notice may reach any process; the clock that counts is the first one's.
        main = self.world.is_main
        asked = in_epoch and self.requests.for_checkpoint()
        due = main and in_epoch and self._save_is_due()
        line = main and self.display.due()
        # What waits in a CUDA graph for another process nobody watches: here it is seen that this one does not come.
        stop, asked, due, line = largest((self.requests.stop_signal, asked, due, line), self.world, LONGEST_STEP)
        if line:
            self._check_finite()
            self.display.line(training.step, training.epoch, training.epoch_metrics(), self._speed())
            self.energy.sample()
        if asked:
            self._say_asked()
        if asked or due or stop:
            self._save()
        if stop:
            raise self._stopped(f"epoch {training.epoch}", stop)

    def _stop_evaluating(self) -> None:
        """Raise `Interrupted` if a signal came to this process."""
        if self.requests.stop_signal:
            raise Interrupted("evaluating", self.requests.stop_signal)

    def _stop_evaluating_together(self) -> None:
        """Raise `Interrupted` in all processes if a signal came to any."""
        (self.requests.stop_signal,) = largest((self.requests.stop_signal,), self.world)
        self._stop_evaluating()

    def _stopped(self, where: str, number: int) -> Interrupted:
        """What ends all processes, when all is on disk: the launcher ends those that are left when one has."""
        self.run.finish_writing()
        barrier(self.world)
        return Interrupted(f"stopped at step {self.training.step} ({where})", number)

    def _say_asked(self) -> None:
        self.display.note(f"a checkpoint was asked for, and is written at step {self.training.step}")
        self.requests.is_answered()

    def _save_is_due(self) -> bool:
        """By this process's own clock, with which others may disagree; not while the one before is being written."""
        return not self.run.is_writing() and time.monotonic() - self.last_save >= self.config.checkpoint.every_s

    def _end_epoch(self) -> None:
        """Close the epoch: evaluate, write its line, keep the best, save."""
        training = self.training
        self._check_finite()
        entry: dict[str, Any] = {
            "epoch": training.epoch,
            "step": training.step,
            "learning_rate": training.learning_rate(training.step - 1),
            "train": training.epoch_metrics(),
        }
        if training.step > self.epoch_first_step:  # a run that goes on from an epoch's last step has none to time
            entry["images_per_s"] = round(self._speed(), 1)
        training.seconds += time.monotonic() - self.epoch_started
        if self.compile_seconds:
            entry["compile_seconds"] = round(self.compile_seconds, 2)
            training.seconds += self.compile_seconds
            self.compile_seconds = 0.0
        last = training.epoch == self.config.epochs
        every = self.config.evaluation.every_epochs
        if last or (every and training.epoch % every == 0):
            started = time.monotonic()
            entry["evaluation"] = self._evaluated()
            entry["evaluation_seconds"] = round(time.monotonic() - started, 2)
        entry["seconds"] = round(training.seconds, 2)
        joules = energy_of(gathered(self.energy.taken(), self.world))
        if joules:
            entry["joules"] = joules
        training.metrics.append(entry)
        self._watch_overfitting()
        training.epoch += 1
        if self.world.is_main:
            self.run.log(entry)
            self.loggers.write(entry)
        self.display.epoch(entry, training.step)
        if "evaluation" in entry:
            self.evaluations.keep_best(entry["evaluation"])
        self._keep_snapshot()
        asked, due = largest((self.requests.for_checkpoint(), self.world.is_main and self._save_is_due()), self.world)
        if asked:
            self._say_asked()
        if last or asked or due:
            self._save(epoch_is_done=True)

    def _evaluated(self) -> dict[str, Any]:
        """The evaluation at the end of an epoch; a run that is stopped in it goes on from the epoch's last step."""
        try:
            return self.evaluations.evaluate_deployed()
        except Interrupted as stopped:
            self._save(epoch_is_done=True)
            raise self._stopped("evaluating", stopped.number) from stopped

    def _watch_overfitting(self) -> None:
        """Mark an epoch whose net has overfitted catastrophically, and say so once."""
        metrics = self.training.metrics
        if not may_overfit(self.config) or not has_overfitted(metrics):
            return
        metrics[-1]["catastrophic_overfitting"] = True
        if overfitting_begins(metrics):
            said = overfitting_sentence(metrics[-1])
            self.display.note(said)
            if self.world.is_main:
                self.run.record_event(said)

    def _keep_snapshot(self) -> None:
        every = self.config.checkpoint.history
        if every and (self.training.epoch - 1) % every == 0:
            self.training.share_statistics()
            if self.world.is_main:
                self.run.save_snapshot(self.training.state_dict())

    def _save(self, epoch_is_done: bool = False) -> None:
        """Begin to write a checkpoint, unless the loss is not finite: the last good one must stay the newest."""
        training = self.training
        self._check_finite()
        training.share_statistics()
        average_in_place([training.totals], self.world)  # a checkpoint holds one process's sums
        if self.world.is_main:
            state = training.state_dict()
            if not epoch_is_done:
                state["seconds"] += time.monotonic() - self.epoch_started + self.compile_seconds
            self.run.save(state, self.config.checkpoint.keep)
        self.last_save = time.monotonic()

    def _check_finite(self) -> None:
        """Raise `WorkError` if a loss or the weights are not finite."""
        step = self.training.first_not_finite()
        if step is None:
            return
        where = f"at step {step}"
        # Weights whose very next loss was not finite are no point to go on from.
        # All say the same; and the launcher, which ends those that are left when one has failed, waits for the disk.
        good = decided(lambda: self.run.forget_from(step), self.world)
        raise WorkError(
            f"the loss is not finite {where}; the last good checkpoint is {good}: go on from it with --resume "
            f"{quote(str(self.run.path))} and a lower --optimizer.learning-rate, or --dtype fp32"
        )

    def _speed(self) -> float:
        steps = self.training.step - self.epoch_first_step
        return steps * self.config.batch / max(time.monotonic() - self.epoch_started, 1e-9)
