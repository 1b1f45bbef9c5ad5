"""Evaluations and their attacks as tests want them: settings by keyword, attacks cut down or replaced."""

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from functools import partial, wraps
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastarat.attacks.apgd import Ascent, apgd
from fastarat.attacks.attack import Conditions, Found
from fastarat.attacks.pgd import Logits
from fastarat.attacks.registry import ATTACKS
from fastarat.config.evaluation import STANDARD, EvaluationSettings
from fastarat.evaluation.autoattack.conduct import Conduct
from fastarat.evaluation.autoattack.driver import autoattack
from fastarat.evaluation.result import Evaluation


def autoattacked(
    model: Logits,
    images: Tensor,
    labels: Tensor,
    *,
    attacks: tuple[str, ...] = STANDARD,
    searching: Logits | None = None,
    state: Path | None = None,
    advance: Callable[[float], None] = lambda amount: None,
    **settings: Any,
) -> Evaluation:
    """`autoattack` with these attacks and further settings."""
    own = EvaluationSettings(",".join(attacks) or "none", **settings)
    return autoattack(model, images, labels, own, searching=searching, conduct=Conduct(state, advance=advance))


def broken_by(result: Evaluation) -> Tensor:
    """int64 [N]: -1 misclassified as it is, 0 robust, k broken by the k-th attack."""
    before, *after = result.flags.values()
    by = torch.where(before, 0, -1)
    for number, flags in enumerate(after, 1):
        by[before & ~flags], before = number, flags
    return by


def attack_of(name: str) -> Callable:
    """The attack that evaluations run by this name."""
    return ATTACKS[name].run


def replace_attack(patch: pytest.MonkeyPatch, name: str, attack: Callable) -> None:
    """Let evaluations run another attack by this name."""
    patch.setitem(ATTACKS, name, replace(ATTACKS[name], run=attack))


def shorten(patch: pytest.MonkeyPatch, cut: Mapping[str, dict[str, int]]) -> None:
    """Cut attacks down to a fraction of their work: `cut` has settings for each."""
    for name, settings in cut.items():
        replace_attack(patch, name, partial(attack_of(name), **settings))


def by_keywords(attack: Callable) -> Callable:
    """An attack on a batch that takes what `Conditions` has by keyword; `steps` are its own."""
    names = {field.name for field in fields(EvaluationSettings)} - {"steps"}
    means = {field.name for field in fields(Conditions)} - {"settings"}

    @wraps(attack)
    def run(*given: Any, **more: Any) -> Any:
        settings = EvaluationSettings(**{name: more.pop(name) for name in names & more.keys()})
        conditions = Conditions(settings, **{name: more.pop(name) for name in means & more.keys()})
        return attack(*given, conditions, **more)

    return run


def ascent_by_keywords(logits_of: Logits, x: Tensor, y: Tensor, rows: Tensor, **given: Any) -> Found:
    """`apgd`, with what `Ascent` and `Conditions` have by keyword."""
    own = {field.name for field in fields(Ascent)} & given.keys()
    ascent = Ascent(**{name: given.pop(name) for name in own})
    return by_keywords(lambda *batch: apgd(*batch, ascent))(logits_of, x, y, rows, **given)
