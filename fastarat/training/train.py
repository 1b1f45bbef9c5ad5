"""Train by a configuration: what `fastarat train` does, and the same from Python."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any

import torch
from fastarat_kernels.launch import UnsupportedInput, is_of_triton, triton_errors

from fastarat.common.choice_log import ChoiceLog
from fastarat.common.console import notice
from fastarat.common.distributed import World, decided, join_world, leave_world, said_of_others, with_short_waits
from fastarat.common.environment import environment
from fastarat.common.errors import Interrupted, WorkError, first_line
from fastarat.common.memory import memory_that_ran_out
from fastarat.common.processes import is_first
from fastarat.config import Config
from fastarat.data.images.copies import warnings_of
from fastarat.data.loading.build import MOST_WORKERS, num_workers
from fastarat.data.loading.choose import Opened
from fastarat.runs.run import Run
from fastarat.training.agreement import check_alike, check_settings, opened_by_all
from fastarat.training.build import start_training, step_of
from fastarat.training.choices import Choices, as_begun, choose, choose_device, is_timed, note_tf32, threads
from fastarat.training.compiling.compiled import MOST_UNROLLED, unrolled_size
from fastarat.training.compiling.fallback import FallbackStep
from fastarat.training.compiling.worth_compiling import faster_mode
from fastarat.training.going_on import check_place, newest_kept, open_run, say_where, why_started_again
from fastarat.training.loggers.logger import chosen_loggers
from fastarat.training.loop import Loop
from fastarat.training.profiling.profiler import first_recorded, profiling
from fastarat.training.reporting import learning_curves
from fastarat.training.state import Training, in_order_of_state
from fastarat.training.step.train_step import Step
from fastarat.training.tuning.kept import TUNED, tuned_choices

__all__ = ["Interrupted", "train"]


def train(
    config: Config,
    out: Path | str,
    *,
    resume: bool = False,
    profile: int | None = None,
    loggers: Sequence[str] | None = None,
) -> Run:
    """Train to the end and return the run; in several processes if they were started by the launcher.

    `profile`: record this number of steps, and write where their time goes to `profile/` in the run
    (`training.profiling`). `loggers`: where numbers go too (`training.loggers.logger.LOGGERS`); None: a run that goes
    on has those that it had, a new one `auto`. Raises `UserError` for what can be known before, `WorkError` for a
    failure in work, `Interrupted` when a signal stopped it after a checkpoint; in any thread but the main one signals
    are the caller's.
    """
    config, log = config.checked(), ChoiceLog(quiet=not is_first())
    for doubt in config.doubts() if is_first() else ():
        notice(doubt)
    device = choose_device(config, log)
    world = join_world(device)
    with _work_errors(world), ExitStack() as at_end:
        check_settings(config, world)
        run = Run(Path(decided(lambda: str(out), world)))  # each may have named one of its own
        at_end.callback(run.unlock)
        at_end.enter_context(_memory_errors(config, run))
        again = why_started_again(world)
        goes_on = decided(lambda: resume or (bool(again) and run.config_file.exists()), world)
        decided(lambda: check_place(run, config, resume, goes_on), world)  # before images are decoded for nothing
        loggers = decided(lambda: chosen_loggers(loggers, run if goes_on else None), world)
        choices, timed = decided(lambda: _chosen(config, run if goes_on else None, device, log), world)
        opened = opened_by_all(config, world)
        world = with_short_waits(world)
        kept = newest_kept(run, world) if goes_on else None
        if kept:
            opened = replace(opened, dataset=in_order_of_state(opened.dataset, *kept))
        training, step = start_training(config, opened, choices, world)
        at_end.callback(training.loader.close)
        check_alike(training, world)
        if timed:
            choices, step = _faster(training, step, choices, kept.state["step"] if kept else 0, log)
        step = FallbackStep(training, step, choices, log, has_to_gain=timed)
        at_end.callback(_close, step)
        _log_the_rest(training, opened, choices, log)
        if profile:
            first_recorded(training, profile)  # before there is a run
        open_run(run, training, goes_on, kept, log, _facts(training, opened, choices, log, loggers))
        if goes_on and world.is_main:
            say_where(run, training, kept, again)
        del kept  # as large as the training itself
        _fit(training, run, step, choices, profile=profile, loggers=loggers)
        # Not after a failure: whoever leaves may wait for those who cannot come.
        leave_world(world)
    return run


@contextmanager
def _memory_errors(config: Config, run: Run) -> Iterator[None]:
    """Raise `WorkError` for what libraries raise where memory runs out, with the way on from what `run` has kept."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not (memory := memory_that_ran_out(error)):
            raise
        with suppress(Exception):  # of a checkpoint that cannot be written either
            run.finish_writing()
        fix = "start anew with a smaller --batch"
        if run.has_checkpoint():
            resume = f"fastarat train --resume {quote(str(run.path))} and a smaller --evaluation.batch"
            fix = f"if it was evaluating, go on with {resume}, else {fix}"
        raise WorkError(f"out of {memory} at batch {config.batch}: {fix}") from None


@contextmanager
def _work_errors(world: World) -> Iterator[None]:
    """Raise `WorkError` for what libraries raise where a kernel or another process fails."""
    try:
        yield
    except UnsupportedInput as error:
        raise WorkError(f"a kernel refused its input ({error}): --kernels pytorch does without it") from error
    except triton_errors() as error:
        raise _of_a_kernel(error) from error
    except WorkError:  # a RuntimeError that says what it is
        raise
    except RuntimeError as error:
        if of_others := said_of_others(str(error), world):
            raise WorkError(of_others) from error
        if is_of_triton(error):
            raise _of_a_kernel(error) from error
        raise


def _of_a_kernel(error: Exception) -> WorkError:
    return WorkError(f"a Triton kernel failed ({first_line(error)}): --kernels pytorch does without it")


def _close(step: FallbackStep) -> None:
    with suppress(RuntimeError):  # a GPU that has failed fails again, and what it said first counts
        step.close()


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
        step.is_stopped, step.fell_back = lambda: loop.requests.stop_signal > 0, partial(_fell_back, loop)
        loop.fit()
    if world.is_main:
        learning_curves(run.path / "learning_curves.png", {recipe: run.metrics()}, str(run.path))
    step.close()  # NCCL, part of which is in the graphs, does not end before they do


def _chosen(config: Config, begun: Run | None, device: str, log: ChoiceLog) -> tuple[Choices, bool]:
    """What the run computes with, and whether timed steps have to say how it runs. A new run takes the fastest form
    that was tuned; one that goes on (`begun`) what it has so far."""
    session = begun.last_session() if begun else None
    unnamed: dict[str, Any] = {}
    if session:
        config, unnamed = as_begun(config, session, device, log)
    elif tuned := tuned_choices(config, device, log):
        return tuned, False
    choices = replace(choose(config, log, device), **unnamed)
    return choices, choices.compile == "eager" and is_timed(config, device)


def _faster(training: Training, step: Step, choices: Choices, done: int, log: ChoiceLog) -> tuple[Choices, Step]:
    """The choices and the step of a run with `done` steps behind it whose timed steps say how it runs."""
    mode = faster_mode(training, step, done, log)
    if mode == choices.compile:
        return choices, step
    choices = replace(choices, compile=mode)
    return choices, step_of(training, choices)


def _log_the_rest(training: Training, opened: Opened, choices: Choices, log: ChoiceLog) -> None:
    """The choices that the data, the net and the device made."""
    config = training.config
    note_tf32(choices, log)
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
    for line in warnings_of(opened.dataset) if is_first() else ():
        notice(line)
    if choices.compile != "eager":
        size, steps = unrolled_size(training.parts), config.attack.steps
        three = f"three graphs: start, one attack step that runs {steps} times, update"
        by_size = size <= MOST_UNROLLED
        why = f"{size} convolutions in one graph; up to {MOST_UNROLLED} compile in time"
        form = "one graph" if (by_size if choices.unroll is None else choices.unroll) else three
        log.choose("compiled step", form, why if choices.unroll is None else TUNED)


def _facts(
    training: Training, opened: Opened, choices: Choices, log: ChoiceLog, loggers: Sequence[str]
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
        "stem_channels": choices.stem_channels,
        "unroll": choices.unroll,
        "threads": choices.threads or torch.get_num_threads(),
        "threads_chosen": choices.threads,
        "data": {
            "name": dataset.name,
            "fingerprint": dataset.fingerprint,
            "labels_fingerprint": dataset.labels_fingerprint,
            "test_images": len(dataset.test.labels),
        },
        "extra": extra and {"name": extra.name, "fingerprint": extra.fingerprint, "images": len(extra.train.labels)},
        "loader": {"name": opened.loader, **asdict(training.config.loading)},
        "loggers": list(loggers),
        "last_batch": "dropped if not full",
    }


def _fell_back(loop: Loop, choices: Choices) -> None:
    """The loop and the record say how the steps run now."""
    loop.compiles = choices.compile != "eager"
    if loop.world.is_main:
        now = asdict(choices)
        loop.run.record_choices(**{name: now[name] for name in ("compile", "kernels", "without", "stem_channels")})
