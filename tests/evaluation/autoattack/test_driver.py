"""AutoAttack runs its attacks as the standard does, and counts what it has confirmed."""

import pytest
import torch
from fastarat_kernels.pgd_step.ball import norms
from torch import Tensor

from fastarat.attacks.attack import Conditions
from fastarat.config.evaluation import STANDARD, EvaluationSettings
from fastarat.evaluation.autoattack.progress import Progress
from tests.helpers.attacks import attack_of, autoattacked, broken_by, replace_attack
from tests.helpers.small_autoattack import BATCH, EPS, NORMS, NUM, assert_same, claims_all, images_and_labels


@NORMS
def test_every_attack_breaks_some_so_that_the_tests_here_say_something(whole, norm):
    result = whole(norm).result
    assert all((broken_by(result) == by).any() for by in range(-1, 5)), result.counts
    assert result.counts["fab-t"] > 2 * BATCH


@NORMS
def test_each_attack_sees_what_is_left_in_order_in_full_batches_from_the_clean_image(whole, norm):
    images, _, result, calls = whole(norm)
    before = list(result.flags.values())
    for at, name in enumerate(STANDARD):
        batches = [(x, rows) for of, x, rows in calls if of == name]
        left = before[at].nonzero().flatten()
        assert [len(x) for x, _ in batches] == [len(part) for part in left.split(BATCH)]
        assert torch.equal(torch.cat([x for x, _ in batches]), images[left].float() / 255)
        assert torch.equal(torch.cat([rows for _, rows in batches]), left)
    assert [name for name, *_ in calls] == sorted([name for name, *_ in calls], key=STANDARD.index)


@NORMS
def test_flags_and_images_are_those_of_the_attacks_one_after_the_other(net, whole, norm):
    images, y, result, _ = whole(norm)
    x, common = images.float() / 255, Conditions(EvaluationSettings(norm=norm, eps=EPS[norm], seed=3))
    robust, by = net(x).argmax(1) == y, torch.full((NUM,), -1)
    by[robust] = 0
    for number, name in enumerate(STANDARD, 1):
        for rows in robust.nonzero().flatten().split(BATCH):
            x_adv, broken, _ = attack_of(name)(net, x[rows], y[rows], rows, common)
            robust[rows[broken]], by[rows[broken]] = False, number
            chosen = torch.isin(result.rows, rows[broken])
            assert torch.equal(result.x_adv[chosen], x_adv[broken])
        assert torch.equal(result.flags[name], robust)
    assert torch.equal(broken_by(result), by) and torch.equal(result.rows, (by > 0).nonzero().flatten())


def test_counts_and_percent_are_of_all_images(whole):
    result = whole("linf").result
    assert list(result.counts) == ["clean", *STANDARD] and result.counts["clean"] == NUM - 3
    assert result.counts["square"] == int((broken_by(result) == 0).sum())
    assert result.robust == 100 * result.counts["square"] / NUM
    assert all(result.seconds[name] > 0 for name in STANDARD)


@NORMS
def test_what_is_broken_is_misclassified_and_inside(net, whole, norm):
    images, labels, result, _ = whole(norm)
    clean = images[result.rows].float() / 255
    shift = result.x_adv - clean
    length = shift.abs().max() if norm == "linf" else norms(shift).max()
    assert 0.9 * EPS[norm] < length <= EPS[norm] + 1e-6
    assert result.x_adv.min() >= 0 and result.x_adv.max() <= 1 and result.x_adv.dtype == torch.float32
    assert (net(result.x_adv).argmax(1) != labels[result.rows]).all()


def test_bytes_and_their_numbers_give_the_same(whole, run):
    images, labels, result, _ = whole("linf")
    assert_same(result, run(images=images.float() / 255, labels=labels))


def test_float64_images_stay_float64(net, run):
    images, labels = images_and_labels(net)
    result = run(net.double(), images=images.double() / 255, labels=labels)
    assert result.x_adv.dtype == torch.float64 and len(result.rows) > 0


def test_batches_of_another_size_give_the_same_flags(net, run):
    images, labels = images_and_labels(net)
    few, many = (run(net.double(), images=images.double() / 255, labels=labels, batch=size) for size in (4, 100))
    assert torch.equal(broken_by(few), broken_by(many))


def test_attacks_run_alone_or_in_another_order(run):
    result = run(attacks=("square", "apgd-ce"))
    assert list(result.counts) == ["clean", "square", "apgd-ce"] and set(broken_by(result).tolist()) <= {-1, 0, 1, 2}
    assert not any("Square" in warning for warning in result.warnings), "there is nothing it could be better than"


def test_progress_ends_at_all_images_and_moves_within_a_batch(run, calls):
    told: list[float] = []
    run(advance=told.append)
    assert min(told) >= 0 and sum(told) == pytest.approx(NUM)
    assert len(told) > 10 * len(calls)


def test_the_work_left_is_that_of_the_images_that_are_still_robust():
    """Images that break early take next to no work, so they say nothing of how long the others take."""
    told: list[float] = []
    settings = EvaluationSettings(attack="apgd-ce,square")
    progress = Progress(told.append, settings, torch.tensor([True] * 8 + [False] * 2))
    assert sum(told) == 0
    first, others = progress.passes("apgd-ce"), progress.passes("square")
    counting, settle = progress.counted(lambda x: x, "apgd-ce", 8)
    for left in [8] + 100 * [2]:  # six of eight break at once
        counting(torch.zeros(left))
    settle(6, progress.passes("apgd-ce", "square"))
    done = first * (8 + 100 * 2) / 101
    assert sum(told) == pytest.approx(10 * done / (done + 2 * others))
    counting, settle = progress.counted(lambda x: x, "square", 2)
    settle(0, others)  # kept from before
    assert sum(told) == pytest.approx(10)


def test_nothing_is_left_to_attack(net, run, calls):
    images, labels = images_and_labels(net)
    told: list[float] = []
    result = run(images=images[:3], labels=labels[:3], advance=told.append)
    assert not calls and result.robust == 0 and (broken_by(result) == -1).all() and result.x_adv.shape == (0, 1, 6, 6)
    assert sum(told) == 3


@pytest.mark.parametrize("name", ["apgd-ce", "square"])
@NORMS
@pytest.mark.parametrize(
    ("model", "value", "shift"),
    [
        ("wrong", 0.5, 0.2),  # outside the ball
        ("wrong", 0.5, float("nan")),
        ("wrong", 0.001, -0.01),  # outside [0, 1]
        ("wrong", 0.999, 0.01),
        ("right", 0.5, 0.01),  # classified correctly
    ],
)
def test_what_is_not_confirmed_counts_as_robust_and_is_reported(monkeypatch, name, norm, model, value, shift):
    replace_attack(monkeypatch, name, claims_all(shift))
    images, labels = torch.full((4, 1, 6, 6), value), torch.zeros(4, dtype=torch.int64)

    def logits_of(x: Tensor) -> Tensor:
        right = (x == value).flatten(1).all(1) if model == "wrong" else torch.ones(len(x), dtype=torch.bool)
        return torch.where(right[:, None], torch.eye(10)[0], torch.eye(10)[1])

    settings = {"norm": norm, "eps": 0.1, "attacks": (name,), "batch": 3}
    result = autoattacked(logits_of, images, labels, **settings)
    assert result.robust == 100 and len(result.rows) == 0
    assert {of: rows.tolist() for of, rows in result.unconfirmed.items()} == {name: [0, 1, 2, 3]}
    assert any("4 images" in warning and name in warning for warning in result.warnings)


@pytest.mark.parametrize(("eps", "confirmed"), [(0.1 - 0.9e-6, True), (0.1 - 1.2e-6, False)])
def test_the_check_allows_roundings_and_no_more(monkeypatch, eps, confirmed):
    replace_attack(monkeypatch, "square", claims_all(0.1))
    images, labels = torch.zeros(2, 1, 6, 6), torch.zeros(2, dtype=torch.int64)
    logits_of = lambda x: torch.eye(10)[(x.amax((1, 2, 3)) > 0).long()]  # noqa: E731
    result = autoattacked(logits_of, images, labels, norm="linf", eps=eps, attacks=("square",))
    assert (result.robust == 0) == confirmed and (len(result.rows) == 2) == confirmed
