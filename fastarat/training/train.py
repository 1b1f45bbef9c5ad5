"""Train by a configuration: what `fastarat train` does, and the same from Python."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from fastarat_kernels.launch import UnsupportedInput, is_of_triton, triton_errors

from fastarat.common.choice_log import ChoiceLog
from fastarat.common.console import command, notice
from fastarat.common.distributed import (
    OF_ANOTHER,
    World,
    barrier,
    decided,
    gathered,
    join_world,
    leave_world,
    said_of_others,
    with_short_waits,
)
from fastarat.common.environment import environment
from fastarat.common.errors import Interrupted, UserError, WorkError, first_line
from fastarat.common.memory import memory_that_ran_out
from fastarat.common.processes import is_first, is_first_here, why_again
from fastarat.common.version import __version__
from fastarat.config import Config
from fastarat.data.loading.build import MOST_WORKERS, num_workers
from fastarat.data.loading.choose import Opened, open_for_training
from fastarat.runs.checkpoint import load_checkpoint
from fastarat.runs.run import Run, settled
from fastarat.training.build import start_training, step_of
from fastarat.training.choices import Choices, as_begun, choose, choose_device, is_timed, threads
from fastarat.training.compiling import faster_mode
from fastarat.training.fallback import FallbackStep
from fastarat.training.loggers.logger import AUTO, check_loggers
from fastarat.training.loop import Loop
from fastarat.training.profiling.profiler import first_recorded, profiling
from fastarat.training.reporting import learning_curves
from fastarat.training.state import Training, in_order_of_state
from fastarat.training.step.compiled import MOST_UNROLLED, unrolled_size
from fastarat.training.tuning.kept import TUNED, begun_with, tuned_choices

__all__ = ["Interrupted", "train"]


def train(
    config: Config, out: Path, *, resume: bool = False, profile: int | None = None, loggers: Sequence[str] = (AUTO,)
) -> Run:
    """Train to the end and return the run; in several processes if they were started by the launcher.

    `profile`: record this number of steps, and write where their time goes to `profile/` in the run
    (`training.profiling`). `loggers`: where numbers go too (`training.loggers.logger.LOGGERS`). Raises `UserError` for
    what can be known before, `WorkError` for a failure in work, `Interrupted` when a signal stopped it after a
    checkpoint; in any thread but the main one signals are the caller's.
    """
    config, run, log = config.checked(), Run(out), ChoiceLog(quiet=not is_first())
    check_loggers(loggers)
    for doubt in config.doubts() if is_first() else ():
        notice(doubt)
    device = choose_device(config, log)
    world = join_world(device)
    training = step = None
    try:
        _check_settings(config, world)
        run = Run(Path(decided(lambda: str(out), world)))  # each may have named one of its own
        again = _why_again(world)
        goes_on = decided(lambda: resume or (bool(again) and run.config_file.exists()), world)
        decided(lambda: _check_place(run, config, resume, goes_on), world)  # before images are decoded for nothing
        choices, tuned, timed = decided(lambda: _chosen(config, run if goes_on else None, device, log), world)
        opened = _opened_by_all(config, world)
        world = with_short_waits(world)
        kept = _kept(run, world) if goes_on else None
        if kept:
            opened = replace(opened, dataset=in_order_of_state(opened.dataset, *kept))
        training, step = start_training(config, opened, choices, world)
        _check_alike(training, world)
        if timed:
            mode = faster_mode(training, step, kept[0]["step"] if kept else 0, log)
            if mode != choices.compile:
                choices = replace(choices, compile=mode)
                step = step_of(training, choices)
        step = FallbackStep(training, step, choices, log, has_to_gain=timed)
        _log_the_rest(training, opened, choices, log)
        if profile:
            first_recorded(training, profile)  # before there is a run
        _open_run(run, training, goes_on, kept, log, _facts(training, opened, choices, log, tuned))
        if goes_on and world.is_main:
            _say_where(run, training, kept, again)
        del kept  # as large as the training itself
        _fit(training, run, step, choices, profile=profile, loggers=loggers)
        # Not after a failure: whoever leaves may wait for those who cannot come.
        leave_world(world)
    except UnsupportedInput as error:
        raise WorkError(f"a kernel refused its input ({error}): --kernels pytorch does without it") from error
    except triton_errors() as error:
        raise _of_a_kernel(error) from error
    except WorkError:  # a RuntimeError that says what it is
        raise
    except (RuntimeError, MemoryError) as error:
        if memory := memory_that_ran_out(error):
            smaller = "a smaller --batch, or --evaluation.batch if it was evaluating"
            raise WorkError(f"out of {memory} at batch {config.batch}: start anew with {smaller}") from None
        if of_others := said_of_others(str(error), world):
            raise WorkError(of_others) from error
        if is_of_triton(error):
            raise _of_a_kernel(error) from error
        raise
    finally:
        if isinstance(step, FallbackStep):
            with suppress(RuntimeError):  # a GPU that has failed fails again, and what it said first counts
                step.close()
        if training:
            training.loader.close()
        run.unlock()
    return run


def _of_a_kernel(error: Exception) -> WorkError:
    return WorkError(f"a Triton kernel failed ({first_line(error)}): --kernels pytorch does without it")


def _fit(
    training: Training, run: Run, step: FallbackStep, choices: Choices, *, profile: int | None, loggers: Sequence[str]
) -> None:
    """Train to the end, and draw how it went."""
    world, recipe = training.parts.world, training.config.recipe
    record = profiling(training, profile, run.path / "profile", choices.compile)
    with threads(choices.threads), record as profiler:
        marked = profiler.marked(step) if profiler else step
        compiles = choices.compile != "eager"
        loop = Loop(training, run, marked, compiles=compiles, profiler=profiler, loggers=loggers)
        step.is_stopped, step.fell_back = lambda: loop.stop_signal > 0, partial(_fell_back, loop)
        loop.fit()
    if world.is_main:
        learning_curves(run.path / "learning_curves.png", {recipe: run.metrics()}, str(run.path))
    step.close()  # NCCL, part of which is in the graphs, does not end before they do


def _chosen(config: Config, begun: Run | None, device: str, log: ChoiceLog) -> tuple[Choices, Choices | None, bool]:
    """What the run computes with, the tuned form that this is (if it is one), and whether timed steps have to say how
    it runs. A new run takes the fastest form that was tuned; one that goes on (`begun`) what it began with."""
    session = begun.last_session() if begun else None
    is_new = session is None
    tuned = tuned_choices(config, device, log) if is_new else begun_with(session, config, device, log)
    if tuned:
        return tuned, tuned, False
    without: tuple[str, ...] = ()
    if session:
        config, without = as_begun(config, session, device, log)
    choices = replace(choose(config, log, device), without=without)
    return choices, None, choices.compile == "eager" and is_timed(config, device)


def _opened_by_all(config: Config, world: World) -> Opened:
    """The first process opens the data, then the first of each other machine with the loader that it took, then the
    others: the first one of a machine may have to decode images that they then find decoded."""
    opened = open_for_training(config, world.device) if world.is_main else None
    loader = decided(lambda: opened.loader if opened else config.loader, world)
    with_its_loader = replace(config, loader=loader)
    if not world.is_main and is_first_here():
        opened = open_for_training(with_its_loader, world.device)
    barrier(world)
    return opened or open_for_training(with_its_loader, world.device)


def _check_settings(config: Config, world: World) -> None:
    """Raise `UserError` unless all processes have the same settings and versions. Where the data lie is each machine's
    own: `_check_alike` compares the images."""
    mine = _settings(config)
    theirs = decided(lambda: mine, world)
    if other := [name for name, value in mine.items() if theirs.get(name) != value]:
        raise UserError(
            f"process {world.rank} has another {other[0]} than the first one: give all machines the same command, and "
            "install the same versions on them"
        )


def _settings(config: Config) -> dict[str, str]:
    config = replace(config, data="", extra=replace(config.extra, data=None))
    own = {f.name: repr(getattr(config, f.name)) for f in fields(config)}
    return {**own, "version of fastarat": __version__, "version of torch": torch.__version__}


def _check_alike(training: Training, world: World) -> None:
    """Raise `UserError` unless all processes train on the same images: others would take other steps, or more."""
    dataset, extra, loader = training.dataset, training.extra, training.loader
    mine = (dataset.fingerprint, extra and extra.fingerprint, loader.num_images, loader.steps_per_epoch)
    if decided(lambda: mine, world) != mine:
        raise UserError(
            f"process {world.rank} finds other images in {dataset.name} than the first one: give all the same data"
        )


def _log_the_rest(training: Training, opened: Opened, choices: Choices, log: ChoiceLog) -> None:
    """The choices that the data and the net made."""
    config = training.config
    if config.loader == "auto":
        log.choose("loader", opened.loader, opened.why)
    if opened.loader != "resident" and not config.loading.workers:
        workers = num_workers(config.loading, config.num_processes)
        log.choose("loading workers", str(workers), f"cores for each process, at most {MOST_WORKERS}")
    if config.num_processes > 1 and not config.sync_bn:
        rows = f"{config.batch // config.num_processes} of {config.batch}"
        log.choose("images that a batch-norm sees", rows, "those of its process; --sync-bn takes all")
    if skipped := opened.dataset.num_skipped:
        log.choose("images left out", str(skipped), "they cannot be decoded, and --loading.corrupt is skip")
    for images in (training.dataset, training.extra):
        if images and images.matched:
            log.choose(f"classes of {images.name}", "matched", images.matched)
    if choices.compile != "eager":
        size, steps = unrolled_size(training.parts), config.attack.steps
        three = f"three graphs: start, one attack step that runs {steps} times, update"
        by_size = size <= MOST_UNROLLED
        why = f"{size} convolutions in one graph; up to {MOST_UNROLLED} compile in time"
        form = "one graph" if (by_size if choices.unroll is None else choices.unroll) else three
        log.choose("compiled step", form, why if choices.unroll is None else TUNED)


def _facts(
    training: Training, opened: Opened, choices: Choices, log: ChoiceLog, tuned: Choices | None
) -> dict[str, Any]:
    dataset, extra = training.dataset, training.extra
    return {
        **environment(),
        "choices": log.choices,
        "device": choices.device,
        "dtype": choices.dtype,
        "compile": choices.compile,
        "kernels": choices.kernels,
        "without": choices.without,
        "tuned": tuned and asdict(tuned),
        "threads": choices.threads or torch.get_num_threads(),
        "data": {
            "name": dataset.name,
            "fingerprint": dataset.fingerprint,
            "test_images": len(dataset.test.labels),
        },
        "extra": extra and {"name": extra.name, "fingerprint": extra.fingerprint, "images": len(extra.train.labels)},
        "loader": {"name": opened.loader, **asdict(training.config.loading)},
        "last_batch": "dropped if not full",
    }


def _fell_back(loop: Loop, choices: Choices) -> None:
    """The loop and the record say how the steps run now."""
    loop.compiles = choices.compile != "eager"
    if loop.world.is_main:
        loop.run.record_choices(compile=choices.compile, kernels=choices.kernels, without=choices.without)


def _why_again(world: World) -> str:
    """Why the launcher has started the processes again, by the one that knows most; empty if it has not."""
    reasons = [reason for reason in gathered(why_again(), world) if reason]
    return min(reasons, key=lambda reason: reason.startswith((OF_ANOTHER, "a ")), default="")


def _check_place(run: Run, config: Config, resume: bool, goes_on: bool) -> None:
    """Raise `UserError` where a run cannot begin, or would be begun again over its own results."""
    if not goes_on:
        run.check_free(config)
    elif resume and not run.has_checkpoint() and (run.weights_file.exists() or run.has_metrics()):
        raise UserError(
            f"{run.path} has its results but no checkpoint any more: {command('eval', run.path)} measures it, "
            f"{command('train', '--from', run.path)} begins a new run"
        )


def _kept(run: Run, world: World) -> tuple[dict[str, Any], Path] | None:
    """What a run that goes on has kept: its newest checkpoint, and its file. The first process reads it for all, for no
    other machine has to see the run's directory."""

    def newest() -> tuple[dict[str, Any], Path] | None:
        run.lock()
        file = run.checkpoint("last") if run.has_checkpoint() else None
        return (load_checkpoint(file), file) if file else None

    return decided(newest, world)


def _open_run(
    run: Run,
    training: Training,
    resume: bool,
    kept: tuple[dict[str, Any], Path] | None,
    log: ChoiceLog,
    facts: dict[str, Any],
) -> None:
    """Make the run's directory, or take up what it has kept."""
    world = training.parts.world
    if not kept:
        training.begin()
    if resume:
        if kept:
            state, source = kept
            training.load_state_dict(state, str(source))
        if world.is_main:
            _check_unfinished(run, training)
            _record_other_processes(run.config(), training.config, log)
            run.checkpoints.mkdir(exist_ok=True)
            run.write_record(facts)
            run.write_config(training.config)
            run.restore_metrics(training.metrics)
            run.forget_snapshots_after(training.epoch - 1)
    elif world.is_main:
        run.create(training.config, facts)
    barrier(world)


def _say_where(run: Run, training: Training, kept: tuple[dict[str, Any], Path] | None, again: str) -> None:
    """Say, and of a run that the launcher has started again record, where it goes on, and why."""
    source, epochs = kept[1] if kept else "the beginning: it had no checkpoint yet", training.config.epochs
    said = f"going on at step {training.step} (epoch {training.epoch}) from {source}"
    if training.epoch > epochs:
        said = f"{run.path} has finished its {epochs} epochs: --epochs N with a larger N goes on"
    if again:
        number = training.config.num_processes
        said += f", in {number} process{'es' * (number > 1)}: {again}"
        run.record_event(said)
    notice(said)


def _record_other_processes(was: Config, now: Config, log: ChoiceLog) -> None:
    """Say that a run that goes on with another number of processes will not end in the weights it would have had."""
    before, after = was.num_processes, now.num_processes
    if before == after:
        return
    why = f"{before} so far: sums are taken in another order, "
    if not now.sync_bn:
        why += f"a batch-norm sees {now.batch // after} images instead of {now.batch // before}, "
    log.choose("processes", str(after), f"{why}so the weights will differ from those of a run that goes on as before")


def _check_unfinished(run: Run, training: Training) -> None:
    """A finished run would train nothing, and its config.json say what nothing in it was made with."""
    epochs = training.config.epochs
    is_finished = training.epoch > epochs and run.weights_file.exists()
    if is_finished and settled(run.config()) != settled(training.config):
        raise UserError(f"{run.path} has finished its {epochs} epochs: give more --epochs to go on with other settings")
