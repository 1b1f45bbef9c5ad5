"""Where a training begins or goes on: its run's directory, and what it has kept there."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fastarat.common.choice_log import ChoiceLog
from fastarat.common.console import command, notice
from fastarat.common.distributed import OF_ANOTHER, World, barrier, decided, gathered
from fastarat.common.errors import UserError
from fastarat.common.processes import why_again
from fastarat.config import Config
from fastarat.runs.checkpoint import load_checkpoint
from fastarat.runs.run import Run, settled
from fastarat.training.state import Training

_DIFFERS = "so the weights will differ from those of a run that goes on as before"


class Kept(NamedTuple):
    """What a run that goes on has kept."""

    state: dict[str, Any]
    """`Training.state_dict`'s"""
    file: Path


def why_started_again(world: World) -> str:
    """Why the launcher has started the processes again, by the one that knows most; empty if it has not."""
    reasons = [reason for reason in gathered(why_again(), world) if reason]
    return min(reasons, key=lambda reason: reason.startswith((OF_ANOTHER, "a ")), default="")


def check_place(run: Run, config: Config, resume: bool, goes_on: bool) -> None:
    """Raise `UserError` where a run cannot begin, or would be begun again over its own results."""
    if not goes_on:
        run.check_free(config)
    elif resume and not run.has_checkpoint() and (os.path.lexists(run.weights_file) or run.has_metrics()):
        raise UserError(
            f"{run.path} has its results but no checkpoint any more: {command('eval', run.path)} measures it, "
            f"{command('train', '--from', run.path)} begins a new run"
        )


def newest_kept(run: Run, world: World) -> Kept | None:
    """The newest checkpoint of a run that goes on; None if it has none.

    The first process reads it for all, for no other machine has to see the run's directory.
    """

    def newest() -> Kept | None:
        run.lock()
        file = run.checkpoint("last") if run.has_checkpoint() else None
        return Kept(load_checkpoint(file), file) if file else None

    return decided(newest, world)


def open_run(
    run: Run,
    training: Training,
    resume: bool,
    kept: Kept | None,
    log: ChoiceLog,
    facts: dict[str, Any],
) -> None:
    """Make the run's directory, or take up what it has kept."""
    world = training.parts.world
    if not kept:
        training.begin()
    if resume:
        if kept:
            training.load_state_dict(kept.state, str(kept.file))
        if world.is_main:
            _check_unfinished(run, training)
            _record_other_processes(run.config(), training.config, log)
            _record_other_threads(run, training.config, facts, log)
            run.checkpoints.mkdir(exist_ok=True)
            run.write_record(facts)
            run.write_config(training.config)
            run.restore_metrics(training.metrics)
            run.forget_snapshots_after(training.epoch - 1)
    elif world.is_main:
        run.create(training.config, facts)
    barrier(world)


def say_where(run: Run, training: Training, kept: Kept | None, again: str) -> None:
    """Say, and of a run that the launcher has started again record, where it goes on, and why."""
    source, epochs = kept.file if kept else "the beginning: it had no checkpoint yet", training.config.epochs
    said = f"going on at step {training.step} (epoch {training.epoch}) from {source}"
    if training.epoch > epochs and run.weights_file.exists():
        said = f"{run.path} has finished its {epochs} epochs: --epochs N with a larger N goes on"
    if again:
        number = training.config.num_processes
        said += f", in {number} process{'es' * (number > 1)}: {again}"
        run.record_event(said)
    notice(said)


def _check_unfinished(run: Run, training: Training) -> None:
    """A finished run would train nothing, and its config.json say what nothing in it was made with."""
    epochs = training.config.epochs
    is_finished = training.epoch > epochs and run.weights_file.exists()
    if is_finished and settled(run.config()) != settled(training.config):
        raise UserError(f"{run.path} has finished its {epochs} epochs: give more --epochs to go on with other settings")


def _record_other_processes(was: Config, now: Config, log: ChoiceLog) -> None:
    """Say that a run that goes on with another number of processes will not end in the weights it would have had."""
    before, after = was.num_processes, now.num_processes
    if before == after:
        return
    why = f"{before} so far: sums are taken in another order, "
    if not now.sync_bn:
        why += f"a batch-norm sees {now.batch // after} images instead of {now.batch // before}, "
    log.choose("processes", str(after), f"{why}{_DIFFERS}")


def _record_other_threads(run: Run, now: Config, facts: Mapping[str, Any], log: ChoiceLog) -> None:
    """Say so of a run on a CPU that goes on with another number of threads; of one that goes on in other processes it
    is said already."""
    session, after = run.last_session() or {}, facts["threads"]
    before = session.get("threads", after)
    on_cpu = session.get("device") == facts["device"] == "cpu"
    if on_cpu and before != after and run.config().num_processes == now.num_processes:
        log.choose("threads", str(after), f"{before} so far: sums are taken in another order, {_DIFFERS}")
