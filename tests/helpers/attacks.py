"""Evaluations and their attacks as tests want them: settings by keyword, attacks cut down or replaced."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastarat.attacks.pgd import Logits
from fastarat.config.evaluation import STANDARD, EvaluationSettings
from fastarat.evaluation.autoattack import engine
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
    return autoattack(model, images, labels, own, searching=searching, state=state, advance=advance)


def broken_by(result: Evaluation) -> Tensor:
    """int64 [N]: -1 misclassified as it is, 0 robust, k broken by the k-th attack."""
    before, *after = result.flags.values()
    by = torch.where(before, 0, -1)
    for number, flags in enumerate(after, 1):
        by[before & ~flags], before = number, flags
    return by


def attack_of(name: str) -> Callable:
    """The attack that evaluations run by this name."""
    return getattr(engine, name.replace("-", "_"))


def replace_attack(patch: pytest.MonkeyPatch, name: str, attack: Callable) -> None:
    """Let evaluations run another attack by this name."""
    patch.setattr(engine, name.replace("-", "_"), attack)


def shorten(patch: pytest.MonkeyPatch, cut: Mapping[str, dict[str, int]]) -> None:
    """Cut attacks down to a fraction of their work: `cut` has settings for each."""
    for name, settings in cut.items():
        attack = attack_of(name)
        replace_attack(patch, name, lambda *given, attack=attack, own=settings, **more: attack(*given, **(more | own)))
