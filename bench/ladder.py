"""One ladder: every variant of a setting is built, checked and, if it is right, timed in turns with the others."""

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch

from bench.gate import Snapshot, batches_of, compare, definition
from bench.ladder_rows import cost_of, row_of
from bench.subjects import Setting, Subject
from bench.turns import TURN_SECONDS, WARM_UP, Effort, Entry, chunk, one_line, take_turns
from bench.variants import fresh_compiler, ladder_of
from fastarat.config import Config
from fastarat.console import notice
from fastarat.data.loader import Batch

# The batches, and what the definition makes of them.
Right = tuple[Sequence[Batch], Sequence[Snapshot]]


def run_ladder(
    setting: Setting,
    names: Sequence[str],
    effort: Effort,
    bandwidth: float,
    settings: dict[str, Any],
    advance: Callable[[float], None],
) -> list[dict[str, Any]]:
    """Rows of these variants, in order. `bandwidth`: bytes/s of a large copy; `settings`: of the benchmark, for rows.

    `advance` is told of shares of the work, 1 in all.
    """
    fresh_compiler()
    ladder, entries, rights = ladder_of(setting), [], {}
    # The turns are to end in time as well.
    deadline = effort.deadline - effort.repeats * len(names) * TURN_SECONDS
    for name in names:
        if time.monotonic() < deadline:
            entries.append(_checked(Entry(name, ladder[name]), rights, deadline))
        else:
            notice(f"budget: {name} left out")
        advance(0.5 / len(names))
    take_turns(entries, effort, lambda share: advance(0.5 * share))
    cost = cost_of(setting)
    rows = [row_of(entry, entries, cost, bandwidth, settings) for entry in entries]
    for entry in entries:
        entry.close()
    return rows


def _checked(entry: Entry, rights: dict[Config, Right], deadline: float) -> Entry:
    """Build the variant, in its fastest form if it has several, and compare it with the definition."""
    variant = entry.variant
    if variant.needs_gpu and variant.setting.device.type == "cpu":
        entry.problem = "needs a GPU"
        return entry
    notice(f"{entry.name}: {variant.adds}")
    for form, build in variant.builds.items():
        if entry.forms and time.monotonic() > deadline:
            notice(f"budget: {entry.name} ({form}) left out")
            break
        try:
            _try(entry, form, build, _right(variant.setting, rights))
        except Exception as e:
            entry.forms[form] = one_line(e)
            notice(f"{entry.name}{f' ({form})' if form else ''}: {one_line(e)}")
            _free()
    if entry.subject is None:
        entry.problem = "; ".join(str(found) for found in entry.forms.values())
    return entry


def _try(entry: Entry, form: str, build: Callable[[Setting], Subject], right: Right) -> None:
    """Check one form, and take it if it is the fastest so far."""
    setting = entry.variant.setting
    on_gpu = setting.device.type == "cuda"
    before = torch.cuda.memory_allocated() if on_gpu else 0
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    started = time.monotonic()
    subject = build(setting)
    entry.verdict = verdict = compare(subject, *right, entry.variant.precision())
    seconds = time.monotonic() - started
    if verdict.problem:
        raise ValueError(f"WRONG: {verdict.problem}")
    subject.scale_attack(1.0)
    feed, rate = subject.batches(), 0.0
    if len(entry.variant.builds) > 1:
        rate = median(chunk(subject, feed, setting, steps)[1] for steps in (WARM_UP, WARM_UP))
    if rate < max((found for found in entry.forms.values() if isinstance(found, float)), default=0.0):
        subject.close()
    else:
        entry.close()
        entry.subject, entry.feed, entry.form, entry.ready_seconds = subject, feed, form, seconds
        entry.peak_memory = (torch.cuda.max_memory_allocated() - before) / 1e9 if on_gpu else None
    entry.forms[form] = rate


def _right(setting: Setting, rights: dict[Config, Right]) -> Right:
    """The batches and the definition's results, computed once for each algorithm."""
    if setting.config not in rights:
        batches = batches_of(setting)
        rights[setting.config] = batches, definition(setting, batches)
        _free()
    return rights[setting.config]


def _free() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
