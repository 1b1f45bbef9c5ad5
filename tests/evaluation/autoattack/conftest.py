"""A small net, and AutoAttack on it, its attacks cut down to a fraction of their work."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from fastarat.evaluation.result import Evaluation
from tests.helpers.attacks import attack_of, autoattacked, replace_attack
from tests.helpers.small_autoattack import BATCH, EPS, Run, Veiled, Whole, images_and_labels


@pytest.fixture
def calls(monkeypatch) -> list[tuple[str, Tensor, Tensor | None]]:
    """The attacks cut down to a fraction of their work; the list fills with what each was called with."""
    short = {
        "apgd-ce": {"steps": 1},
        "apgd-t": {"steps": 1},
        "fab-t": {"steps": 6},
        "square": {"queries": 100},
    }
    seen: list[tuple[str, Tensor, Tensor | None]] = []

    def noted(name: str, attack: Callable) -> Callable:
        def run(logits_of, x, y, rows, conditions):
            seen.append((name, x, rows))
            targets = {"apgd-t": 2, "fab-t": 4}.get(name, conditions.settings.targets)
            settings = replace(conditions.settings, targets=targets)
            return attack(logits_of, x, y, rows, replace(conditions, settings=settings), **short[name])

        return run

    for name in short:
        replace_attack(monkeypatch, name, noted(name, attack_of(name)))
    return seen


@pytest.fixture
def net() -> nn.Module:
    """A net that each of the attacks below breaks for some images."""
    torch.manual_seed(0)
    return Veiled().eval().requires_grad_(False)


@pytest.fixture
def open_net() -> nn.Module:
    """A net with nothing to warn of, for the same images."""
    layers = nn.Flatten(), nn.Linear(36, 48), nn.ReLU(), nn.Linear(48, 10)
    return nn.Sequential(*layers).eval().requires_grad_(False)


@pytest.fixture
def given(net) -> tuple[Tensor, Tensor]:
    """Images and labels of the net, the same in every test."""
    return images_and_labels(net)


@pytest.fixture
def run(net, given, calls) -> Run:
    """AutoAttack on the net with its images, cut down; settings and the model may be others."""
    images, labels = given

    def attack(model=net, norm="linf", images=images, labels=labels, **settings) -> Evaluation:
        given = {"eps": EPS.get(norm, 0.1), "batch": BATCH, "seed": 3, **settings}
        return autoattacked(model, images, labels, norm=norm, **given)

    return attack


RUNS: dict[str, Whole] = {}


@pytest.fixture
def whole(given, run, calls) -> Callable[[str], Whole]:
    """The run in a norm with the settings of `run`: one for all tests, whose nets and images are the same."""

    def of(norm: str) -> Whole:
        if norm not in RUNS:
            before = [part.clone() for part in given]
            result = run(norm=norm)
            assert all(map(torch.equal, given, before)), "the inputs are untouched"
            RUNS[norm] = Whole(*given, result, list(calls))
        calls.clear()
        return RUNS[norm]

    return of
