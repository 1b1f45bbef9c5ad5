"""AutoAttack warns where its numbers may say too much, and of nothing else."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fastarat.attacks.attack import Found
from fastarat.evaluation.result import Evaluation
from fastarat.verification.stored_net import load_kit_model
from tests.helpers.attacks import autoattacked, replace_attack
from tests.helpers.small_autoattack import (
    NORMS,
    warned,
)


@NORMS
def test_a_net_that_hides_nothing_is_not_warned_of(open_net, run, norm):
    assert warned(run(open_net, norm=norm))


def test_logits_times_a_factor_are_answered_with_the_flat_cross_entropy(open_net, run):
    result = run(lambda x: 3000 * open_net(x))
    assert warned(result, "of apgd-ce began with a gradient of exactly zero")


def test_an_input_rounded_to_16_levels_is_answered_with_gradients_of_zero_and_squares_success(open_net, run):
    result = run(lambda x: open_net((x * 16).round() / 16), eps=0.04)
    words = "of apgd-ce began with", "of apgd-t began with", "by fab-t", "Square, which needs no gradient"
    assert warned(result, *words)


@pytest.mark.parametrize("num", [2, 3])
def test_square_is_warned_of_above_a_fifth_of_a_point(run, monkeypatch, num):
    images, labels = torch.zeros(1000, 1, 6, 6), torch.zeros(1000, dtype=torch.int64)
    changes = {"apgd-ce": 100, "square": 100 + num}  # so many images, the first ones
    for name, count in changes.items():
        replace_attack(
            monkeypatch,
            name,
            lambda _, x, y, rows, conditions, count=count: Found(
                x + 0.01 * (rows < count).view(-1, 1, 1, 1), rows < count, y >= 0
            ),
        )
    logits_of = lambda x: torch.eye(10)[(x > 0).flatten(1).any(1).long()] + x.flatten(1)[:, :10]  # noqa: E731
    result = run(logits_of, images=images, labels=labels, attacks=("apgd-ce", "square"), batch=300)
    assert list(result.counts.values()) == [1000, 900, 900 - num]
    told = [warning for warning in result.warnings if "Square" in warning]
    assert len(told) == (num == 3) and all("lowered robust accuracy by 0.3 points" in warning for warning in told)


def test_noise_in_the_forward_is_answered_with_randomised(open_net, run):
    result = run(lambda x: open_net(x + 0.1 * torch.randn_like(x)))
    assert any("randomised" in warning for warning in result.warnings)


def test_noise_that_changes_no_prediction_is_found_too(open_net, run):
    model = lambda x: open_net(x) * (1 + 0.01 * torch.rand(len(x), 10))  # noqa: E731
    assert any("randomised" in warning for warning in run(model, attacks=("apgd-ce",)).warnings)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_softmax_is_answered_with_probabilities_whatever_their_format_rounds(open_net, run, dtype):
    result = run(lambda x: (20 * open_net(x)).softmax(1).to(dtype))
    assert any("return probabilities" in warning for warning in result.warnings)
    result = run(lambda x: (open_net(x).softmax(1) + 0.002).to(dtype))  # which add up to 1.02
    assert not any("return probabilities" in warning for warning in result.warnings)


def test_warnings_leave_the_interpreters_tracing_alone(run):
    mine = lambda *event: None  # noqa: E731
    before = sys.gettrace()
    sys.settrace(mine)
    try:
        run(attacks=("apgd-ce",))
        assert sys.gettrace() is mine
    finally:
        sys.settrace(before)


def on_the_kit(kit: Path, name: str, norm: str, **settings) -> tuple[list[int], list[int], Evaluation]:
    """Robust counts of ours and of the standard's seed 0, after clean and each attack; and our result."""
    file = f"aa_{name}_{'Linf' if norm == 'linf' else 'L2'}_sequential_seed0.npz"
    with np.load(kit / "data.npz") as data, np.load(kit / file) as flags:
        x, y = (torch.from_numpy(data[key]) for key in ("x_test", "y_test"))
        theirs = [
            int(flags[f"robust_after_{stage}"].sum()) for stage in ("clean", "apgd_ce", "apgd_t", "fab_t", "square")
        ]
    net = load_kit_model(kit, name).requires_grad_(False)
    result = autoattacked(net, x, y, norm=norm, eps=0.18 if norm == "linf" else 0.75, **settings)
    return list(result.counts.values()), theirs, result


def test_on_the_kit_logits_times_100_hide_from_cross_entropy_but_not_from_the_targeted_loss(kit):
    ours, _, result = on_the_kit(kit, "scaled", "linf", attacks=("apgd-ce",))
    assert abs(100 * ours[1] / 360 - 95) <= 2
    assert warned(result, "of apgd-ce began with a gradient of exactly zero")
