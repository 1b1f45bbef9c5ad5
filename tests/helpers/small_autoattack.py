"""AutoAttack on a small net, of which every attack breaks some images: what the tests of its parts share."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from fastarat.attacks.attack import Found
from fastarat.evaluation.result import Evaluation
from tests.helpers.attacks import broken_by

EPS = {"linf": 0.02, "l2": 0.08}
NORMS = pytest.mark.parametrize("norm", ["linf", "l2"])
NUM = 40
BATCH = 5

Run = Callable[..., Evaluation]


class Veiled(nn.Module):
    """10 classes for images [N, 1, 6, 6]; part of the gradient is hidden, so that Square finds what is left."""

    def __init__(self):
        super().__init__()
        self.open, self.hidden = nn.Linear(36, 10), nn.Linear(36, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.open(x) + 1.7 * self.hidden((x * 64).round() / 64)


def images_and_labels(net: nn.Module, n: int = NUM) -> tuple[Tensor, Tensor]:
    """Images at whole bytes, and as labels what the net says, but for the first three."""
    pixels = torch.randint(0, 256, (n, 1, 6, 6), dtype=torch.uint8)
    y = net(pixels.float() / 255).argmax(1)
    return pixels, torch.cat([(y[:3] + 1) % 10, y[3:]])


class Whole(NamedTuple):
    """A run from its beginning to its end, and what it was given."""

    images: Tensor
    labels: Tensor
    result: Evaluation
    calls: list[tuple[str, Tensor, Tensor | None]]


def assert_same(ours: Evaluation, theirs: Evaluation) -> None:
    """Bit for bit, but for the seconds."""
    assert torch.equal(broken_by(ours), broken_by(theirs)) and torch.equal(ours.rows, theirs.rows)
    assert torch.equal(ours.x_adv, theirs.x_adv)
    assert all(torch.equal(flags, theirs.flags[name]) for name, flags in ours.flags.items())
    assert ours.warnings == theirs.warnings and ours.unconfirmed.keys() == theirs.unconfirmed.keys()
    assert all(torch.equal(rows, theirs.unconfirmed[name]) for name, rows in ours.unconfirmed.items())


def warned(result: Evaluation, *words: str) -> bool:
    """Whether there is just one warning for each of these words, all plain sentences."""
    found = [[warning for warning in result.warnings if word in warning] for word in words]
    assert all("\n" not in warning and warning.endswith(".") for warning in result.warnings)
    return all(len(of) == 1 for of in found) and len(result.warnings) == len(words)


def claims_all(shift: float) -> Callable:
    """An attack that adds `shift` and says that all are broken."""
    return lambda logits_of, x, y, rows, conditions: Found(x + shift, y >= 0, y >= 0)
