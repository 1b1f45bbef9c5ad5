"""One ladder: every variant of a setting is built, checked and, if it is right, timed in turns with the others."""

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from bench.common.timing import one_line
from bench.ladder.rows import cost_of, row_of
from bench.ladder.turns import TURN_SECONDS, LadderEffort, Rung, count_launches, time_in_turns
from bench.ladder.variants import NEEDS_GPU, fresh_compiler, ladder_of
from fastarat.common.console import notice
from fastarat.common.signals import Stopped, answered, stop
from fastarat.config import Config
from fastarat.training.tuning.chunks import WARM_UP, chunk, steps_for
from fastarat.training.tuning.gate import Right, batches_of, compare, definition, precision_of
from fastarat.training.tuning.subject import StepSetting, Subject, give_back_memory


def run_ladder(
    setting: StepSetting,
    names: Sequence[str],
    effort: LadderEffort,
    *,
    bandwidth: float,
    settings: dict[str, Any],
    advance: Callable[[float], None],
) -> Iterator[list[dict[str, Any]]]:
    """Rows of these variants, in the ladder's order; of those that there was time for. On a GPU they come twice: when
    all are timed, and with the launches of a step.

    `bandwidth`: bytes/s of a large copy; `settings`: of the benchmark, for rows. `advance` is told of shares of the
    work, 1 in all.
    """
    fresh_compiler()
    cost = cost_of(setting)
    rungs = {name: Rung(name, variant) for name, variant in ladder_of(setting).items() if name in names}
    try:
        with answered(stop):
            _check_all(rungs, effort, lambda share: advance(0.5 * share))
    except Stopped as stopped:
        if stopped.number != signal.SIGTERM:
            raise
        notice("budget: stopped; what is ready is timed")
        effort = replace(effort, repeats=2)
    time_in_turns(list(rungs.values()), effort, lambda share: advance(0.5 * share))
    found = [rung for rung in rungs.values() if rung.problem or rung.rates]
    rows = [row_of(rung, found, cost, bandwidth=bandwidth, settings=settings) for rung in found]
    yield rows
    if setting.device.type == "cuda":
        count_launches(found)
        yield [row | {"launches": rung.launches} for row, rung in zip(rows, found, strict=True)]
    for rung in rungs.values():
        rung.close()


def _check_all(rungs: dict[str, Rung], effort: LadderEffort, advance: Callable[[float], None]) -> None:
    """Build and compare every variant that there is time for; those that are compiled in several forms come last."""
    # The turns are to end in time as well.
    deadline = effort.deadline - effort.repeats * len(rungs) * TURN_SECONDS
    rights: dict[Config, Right] = {}
    for rung in sorted(rungs.values(), key=lambda rung: len(rung.variant.builds)):
        if time.monotonic() < deadline:
            _check(rung, rights, deadline)
        else:
            notice(f"budget: {rung.name} left out")
        advance(1 / len(rungs))


def _check(rung: Rung, rights: dict[Config, Right], deadline: float) -> None:
    """Build the variant, in its fastest form if it has several, and compare it with the definition."""
    variant, slowest = rung.variant, 0.0
    if variant.needs_gpu and variant.setting.device.type == "cpu":
        rung.problem = NEEDS_GPU
        return
    notice(f"{rung.name}: {variant.adds}")
    for form, build in variant.builds.items():
        started = time.monotonic()
        if rung.forms and started + 2 * slowest > deadline:
            notice(f"budget: {rung.name} ({form}) left out")
            break
        problem = _try(rung, form, build, rights=rights)
        if problem is not None:
            rung.forms[form] = problem
            notice(f"{rung.name}{f' ({form})' if form else ''}: {problem}")
        give_back_memory()
        slowest = max(slowest, time.monotonic() - started)
    if rung.subject is None:
        rung.problem = "; ".join(str(found) for found in rung.forms.values())


def _try(rung: Rung, form: str, build: Callable[[StepSetting], Subject], *, rights: dict[Config, Right]) -> str | None:
    """Check one form, and take it if it is the fastest so far; what is wrong with it, or None."""
    setting = rung.variant.setting
    on_gpu = setting.device.type == "cuda"
    try:
        right = _right(setting, rights)
        before = torch.cuda.memory_allocated() if on_gpu else 0
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        started = time.monotonic()
        subject = build(setting)
        rung.verdict = verdict = compare(subject, right, precision_of(rung.variant.dtype, setting.device.type))
        seconds = time.monotonic() - started
        if verdict.problem:
            return f"WRONG: {verdict.problem}"
        subject.scale_attack(1, 1)
        feed, rate = subject.batches(), 0.0
        if len(rung.variant.builds) > 1:
            _, rate = chunk(subject, feed, setting, WARM_UP)
            _, rate = chunk(subject, feed, setting, steps_for(setting, rate))
    except Exception as error:
        return one_line(error)
    if rate < max((found for found in rung.forms.values() if isinstance(found, float)), default=0.0):
        subject.close()
    else:
        rung.close()
        rung.subject, rung.feed, rung.form, rung.ready_seconds = subject, feed, form, seconds
        rung.peak_memory = (torch.cuda.max_memory_allocated() - before) / 1e9 if on_gpu else None
    rung.forms[form] = rate
    return None


def _right(setting: StepSetting, rights: dict[Config, Right]) -> Right:
    """The batches and the definition's results, computed once for each algorithm."""
    if setting.config not in rights:
        batches = batches_of(setting)
        rights[setting.config] = batches, definition(setting, batches)
        give_back_memory()
    return rights[setting.config]
