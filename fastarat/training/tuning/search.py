"""The search for the fastest right form: every candidate, then each of Triton's kernels and each shape of its
batch-norm by itself, then other numbers of threads or another stem."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fastarat_kernels.implementations import NAMES, of_shape

from fastarat.common.console import notice
from fastarat.common.errors import first_line
from fastarat.training.build import pad_stems
from fastarat.training.choices import Choices
from fastarat.training.tuning.candidates import candidates, described, other_stems, other_threads
from fastarat.training.tuning.gate import Right, batches_of, definition
from fastarat.training.tuning.map_shapes import map_shapes
from fastarat.training.tuning.subject import FastaratSubject, StepSetting
from fastarat.training.tuning.trial import Trial, Tried, fastest

_WORK = {"eager": 1, "compile": 8, "graph": 8}
"""of trying a form, for the time left: the compiler takes the most of it"""
_LONG = 1e12
"""images of a run in which the first step counts for nothing"""


def try_all(
    setting: StepSetting,
    advance: Callable[[float], None],
    before: Sequence[Tried] = (),
    keep: Callable[[list[Tried]], None] = lambda found: None,
) -> tuple[list[Tried], dict[str, str]]:
    """Every candidate, the plainest first; then the fastest by those of Triton's kernels, and of the shapes of its
    batch-norm, that earn their place; and that with other numbers of threads, or another stem. And what is to be said
    of each kernel and shape, where they are open.

    `advance` is told of shares of the work, 1 in all, and `keep` of the candidates until now. What was right `before`
    is not tried again, but for the plainest: its ratio to that is of turns that both took then. Raises `UserError` as
    `candidates` does, and `WorkError` if the plainest form is refused.
    """
    forms, changes = candidates(setting.config, setting.device.type), _changes(setting)
    are_open = len({form.kernels for form in forms}) > 1
    names = [*map(of_shape, map_shapes(setting))] if are_open else []
    later = _WORK["compile"] * (len(changes) + are_open * len(NAMES) + len(names))
    work = _WORK["eager"] + sum(_WORK[form.compile] for form in forms) + later
    batches = batches_of(setting)
    right = batches, definition(setting, batches)
    trial = Trial(setting, right, forms[0])
    found, kernels = [trial.plain], {}
    known = {one.form: one for one in before if one.problem is None}
    advance((_WORK["eager"] + _WORK[forms[0].compile]) / work)

    def add(form: Choices, share: float) -> None:
        if form not in [one.form for one in found]:
            found.append(known.get(form) or _said(trial.of(form)))
            keep(found)
        advance(share / work)

    def advance_one() -> None:
        advance(_WORK["compile"] / work)

    for form in forms[1:]:
        add(form, _WORK[form.compile])
    if are_open:
        mixed, kernels = _by_kernels(setting, right, found, advance_one)
        add(mixed, 0)
        mixed, shapes = _by_shapes(setting, right, _best(found), names, advance_one)
        add(mixed, 0)
        kernels |= shapes
    for change in changes:
        add(replace(_best(found), **change), _WORK["compile"])
    trial.close()
    return found, kernels


def _changes(setting: StepSetting) -> list[dict[str, Any]]:
    """What may yet differ in the form that is fastest."""
    device = setting.device.type
    threads = [{"threads": number} for number in other_threads(device)]
    stems = [channels for channels in other_stems(device) if _can_pad(setting, channels)]
    return [*threads, *({"stem_channels": channels} for channels in stems)]


def _can_pad(setting: StepSetting, channels: int) -> bool:
    """Whether a stem of so many channels changes the step: one that is the same may win by chance."""
    return pad_stems(FastaratSubject(setting, Choices(setting.device.type)).training, channels)


def _by_kernels(
    setting: StepSetting, right: Right, found: Sequence[Tried], advance: Callable[[], None]
) -> tuple[Choices, dict[str, str]]:
    """The fastest form with what remains of Triton's kernels, and what is to be said of each; `advance` is called after
    each.

    Each is left out by itself, in turns with all of them; one without which the step is faster in every turn loses.
    Where all together are refused each computes alone, in turns with PyTorch's, which tells those that are wrong.
    """
    whole = replace(_best(found), kernels="triton")
    plain = replace(whole, kernels="pytorch")
    if whole in [one.form for one in found if one.problem is None]:
        forms = {name: replace(whole, without=(name,)) for name in NAMES}
        lost, verdicts = _one_by_one(setting, right, whole, forms, advance)
    else:
        forms = {name: replace(whole, without=tuple(other for other in NAMES if other != name)) for name in NAMES}
        lost, verdicts = _one_by_one(setting, right, plain, forms, advance, are_alone=True)
    return plain if len(lost) == len(NAMES) else replace(whole, without=lost), verdicts


def _by_shapes(
    setting: StepSetting, right: Right, best: Choices, names: Sequence[str], advance: Callable[[], None]
) -> tuple[Choices, dict[str, str]]:
    """The form `best` without those shapes of its fused batch-norm that lose, and what is to be said of each: the fused
    kernels may win on large maps and lose on small ones. `advance` as above."""
    if not names or best.kernels == "pytorch" or "fused_batch_norm" in best.without:
        for _ in names:
            advance()
        return best, {}
    forms = {name: replace(best, without=(*best.without, name)) for name in names}
    lost, verdicts = _one_by_one(setting, right, best, forms, advance)
    return replace(best, without=(*best.without, *lost)), verdicts


def _one_by_one(
    setting: StepSetting,
    right: Right,
    beside: Choices,
    forms: Mapping[str, Choices],
    advance: Callable[[], None],
    *,
    are_alone: bool = False,
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Time the forms in turns with the one `beside` them: names of those that lose, and what is to be said of each.

    A form is that one without what its name says, which loses if the step is faster in every turn; or (`are_alone`)
    with that alone, which loses if it is refused or slower in every turn.
    """
    lost, verdicts = (), {}
    how, whose = ("alone", "PyTorch's speed") if are_alone else ("without it", "the speed")
    try:
        trial = Trial(setting, right, beside)
    except Exception as error:  # it had passed: what was found is not lost
        notice(f"{', '.join(forms)}: not tried one by one: {first_line(error)}")
        for _ in forms:
            advance()
        return lost, verdicts
    for name, form in forms.items():
        tried = trial.of(form)
        least, _, most = tried.ratio
        loses = (tried.problem is not None or most < 1) if are_alone else least > 1
        came_of_it = tried.problem or f"{tried.ratio_text} x {whose}"
        verdicts[name] = f"{'left out' if loses else 'stays'}; {how}: {came_of_it}"
        notice(f"{name}: {verdicts[name]}")
        lost = (*lost, name) if loses else lost
        advance()
    trial.close()
    return lost, verdicts


def _best(found: Sequence[Tried]) -> Choices:
    best = fastest(found, _LONG, found)
    assert best is not None  # the plainest, at least
    return best.form


def _said(tried: Tried) -> Tried:
    """Show what came of a candidate as soon as it is known."""
    notice(f"{described(tried.form)}: {tried.problem or tried.ratio_text}")
    return tried
