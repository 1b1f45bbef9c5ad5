"""The search for the fastest right form: every candidate, then each of Triton's kernels by itself, then other numbers
of threads."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from fastarat_kernels.implementations import NAMES

from fastarat.common.console import notice
from fastarat.common.errors import first_line
from fastarat.training.choices import Choices
from fastarat.training.tuning.candidates import candidates, described, other_threads
from fastarat.training.tuning.gate import Right, batches_of, definition
from fastarat.training.tuning.subject import StepSetting
from fastarat.training.tuning.trial import Trial, Tried, fastest

_WORK = {"eager": 1, "compile": 8, "graph": 8}
"""of trying a form, for the time left: the compiler takes the most of it"""
_LONG = 1e12
"""images of a run in which the first step counts for nothing"""


def try_all(setting: StepSetting, advance: Callable[[float], None]) -> tuple[list[Tried], dict[str, str]]:
    """Every candidate, the plainest first; then the fastest by those of Triton's kernels that earn their place, and
    with other numbers of threads. And what is to be said of each kernel, where they are open.

    `advance` is told of shares of the work, 1 in all. Raises `UserError` as `candidates` does, and `WorkError` if the
    plainest form is refused.
    """
    forms, threads = candidates(setting.config, setting.device.type), other_threads(setting.device.type)
    names = NAMES if len({form.kernels for form in forms}) > 1 else ()
    later = _WORK["compile"] * (len(threads) + len(names))
    work = _WORK["eager"] + sum(_WORK[form.compile] for form in forms) + later
    batches = batches_of(setting)
    right = batches, definition(setting, batches)
    trial = Trial(setting, right, forms[0])
    found = [trial.plain]
    advance((_WORK["eager"] + _WORK[forms[0].compile]) / work)
    for form in forms[1:]:
        found.append(_said(trial.of(form)))
        advance(_WORK[form.compile] / work)
    kernels: dict[str, str] = {}
    if names:
        mixed, kernels = _by_kernels(setting, right, found, lambda: advance(_WORK["compile"] / work))
        if mixed not in [one.form for one in found]:
            found.append(_said(trial.of(mixed)))
    for number in threads:
        found.append(_said(trial.of(replace(_best(found), threads=number))))
        advance(_WORK["compile"] / work)
    trial.close()
    return found, kernels


def _by_kernels(
    setting: StepSetting, right: Right, found: Sequence[Tried], advance: Callable[[], None]
) -> tuple[Choices, dict[str, str]]:
    """The fastest form with what remains of Triton's kernels, and what is to be said of each; `advance` is called after
    each.

    Each is left out by itself, in turns with all of them; one without which the step is faster in every turn loses.
    Where all together are refused each computes alone, in turns with PyTorch's, which tells those that are wrong.
    """
    whole = replace(_best(found), kernels="triton")
    is_right = whole in [one.form for one in found if one.problem is None]
    try:
        trial = Trial(setting, right, whole if is_right else replace(whole, kernels="pytorch"))
    except Exception as error:  # it had passed: what was found is not lost
        notice(f"Triton's kernels are not tried one by one: {first_line(error)}")
        return _best(found), {}
    verdicts, lost = {}, []
    for name in NAMES:
        others = tuple(other for other in NAMES if other != name)
        tried = trial.of(replace(whole, without=(name,) if is_right else others))
        least, _, most = tried.ratio
        loses = least > 1 if is_right else tried.problem is not None or most < 1
        how, whose = ("without it", "the speed") if is_right else ("alone", "PyTorch's speed")
        came_of_it = tried.problem or f"{tried.ratio_text} x {whose}"
        verdicts[name] = f"{'left out' if loses else 'stays'}; {how}: {came_of_it}"
        notice(f"{name}: {verdicts[name]}")
        lost += [name] * loses
        advance()
    trial.close()
    if len(lost) == len(NAMES):
        return replace(whole, kernels="pytorch"), verdicts
    return replace(whole, without=tuple(lost)), verdicts


def _best(found: Sequence[Tried]) -> Choices:
    best = fastest(found, _LONG, found)
    assert best is not None  # the plainest, at least
    return best.form


def _said(tried: Tried) -> Tried:
    """Show what came of a candidate as soon as it is known."""
    notice(f"{described(tried.form)}: {tried.problem or tried.ratio_text}")
    return tried
