"""AutoAttack runs its attacks as the standard does, counts what it has confirmed, warns, and goes on where it was."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from fastarat_kernels.pgd_step.ball import norms
from safetensors.torch import load_file
from torch import Tensor, nn

from fastarat.attacks.attack import Conditions
from fastarat.attacks.found import Found
from fastarat.common.errors import UserError
from fastarat.common.tensors import write_tensors
from fastarat.config.evaluation import STANDARD, EvaluationSettings
from fastarat.evaluation.autoattack.checks import check_model
from fastarat.evaluation.result import Evaluation
from fastarat.verification.stored_net import load_kit_model
from tests.helpers.attacks import attack_of, autoattacked, broken_by, replace_attack
from tests.helpers.mutants import FEW, MANY, outcomes

EPS = {"linf": 0.02, "l2": 0.08}
NORMS = pytest.mark.parametrize("norm", ["linf", "l2"])
NUM = 40
BATCH = 5

Run = Callable[..., Evaluation]


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


class Veiled(nn.Module):
    """10 classes for images [N, 1, 6, 6]; part of the gradient is hidden, so that Square finds what is left."""

    def __init__(self):
        super().__init__()
        self.open, self.hidden = nn.Linear(36, 10), nn.Linear(36, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.open(x) + 1.7 * self.hidden((x * 64).round() / 64)


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


def images_and_labels(net: nn.Module, n: int = NUM) -> tuple[Tensor, Tensor]:
    """Images at whole bytes, and as labels what the net says, but for the first three."""
    pixels = torch.randint(0, 256, (n, 1, 6, 6), dtype=torch.uint8)
    y = net(pixels.float() / 255).argmax(1)
    return pixels, torch.cat([(y[:3] + 1) % 10, y[3:]])


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


class Whole(NamedTuple):
    """A run from its beginning to its end, and what it was given."""

    images: Tensor
    labels: Tensor
    result: Evaluation
    calls: list[tuple[str, Tensor, Tensor | None]]


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


def assert_same(ours: Evaluation, theirs: Evaluation) -> None:
    """Bit for bit, but for the seconds."""
    assert torch.equal(broken_by(ours), broken_by(theirs)) and torch.equal(ours.rows, theirs.rows)
    assert torch.equal(ours.x_adv, theirs.x_adv)
    assert all(torch.equal(flags, theirs.flags[name]) for name, flags in ours.flags.items())
    assert ours.warnings == theirs.warnings and ours.unconfirmed.keys() == theirs.unconfirmed.keys()
    assert all(torch.equal(rows, theirs.unconfirmed[name]) for name, rows in ours.unconfirmed.items())


# --- order and counting


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


def test_nothing_is_left_to_attack(net, run, calls):
    images, labels = images_and_labels(net)
    told: list[float] = []
    result = run(images=images[:3], labels=labels[:3], advance=told.append)
    assert not calls and result.robust == 0 and (broken_by(result) == -1).all() and result.x_adv.shape == (0, 1, 6, 6)
    assert sum(told) == 3


# --- what is found is checked


def claims_all(shift: float) -> Callable:
    """An attack that adds `shift` and says that all are broken."""
    return lambda logits_of, x, y, rows, conditions: Found(x + shift, y >= 0, y >= 0)


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


# --- warnings


def warned(result: Evaluation, *words: str) -> bool:
    """Whether there is just one warning for each of these words, all plain sentences."""
    found = [[warning for warning in result.warnings if word in warning] for word in words]
    assert all("\n" not in warning and warning.endswith(".") for warning in result.warnings)
    return all(len(of) == 1 for of in found) and len(result.warnings) == len(words)


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


def test_a_softmax_is_answered_with_probabilities(open_net, run):
    assert warned(run(nn.Sequential(open_net, nn.Softmax(1)).eval()), "return probabilities")


def test_warnings_leave_the_interpreters_tracing_alone(run):
    mine = lambda *event: None  # noqa: E731
    before = sys.gettrace()
    sys.settrace(mine)
    try:
        run(attacks=("apgd-ce",))
        assert sys.gettrace() is mine
    finally:
        sys.settrace(before)


# --- what can be known before


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"eps": 0}, "eps is 0: give a number above 0"),
        ({"eps": -0.1}, "eps is -0.1"),
        ({"eps": float("nan")}, "eps is nan"),
        ({"eps": 8, "norm": "linf"}, r"eps is 8: give it in units where pixels are in \[0, 1\], as 8/255"),
        ({"norm": "l1"}, "Unknown norm 'l1'"),
        ({"batch": 0}, "batch is 0"),
        ({"attacks": ("apgd-cf",)}, "Did you mean 'apgd-ce'"),
        ({"attacks": ("square", "square")}, "attack square is named twice: give each once"),
        ({"targets": 0}, "targets is 0: give 1 or more"),
        ({"steps": 0}, "steps is 0"),
        ({"step": float("nan")}, "step is nan"),
        ({"images": torch.full((NUM, 1, 6, 6), 1.5)}, r"images lie in \[1.5, 1.5\], not in \[0, 1\]"),
        ({"images": torch.full((NUM, 1, 6, 6), -0.1)}, "put it into the model"),
        ({"images": torch.full((NUM, 1, 6, 6), float("nan"))}, "1440 of 1440 pixels are NaN: leave out"),
        ({"images": torch.zeros(NUM, 1, 6, 6, dtype=torch.int64)}, "give bytes, or floats"),
        ({"images": torch.zeros(NUM, 36)}, r"give \[N, C, H, W\]"),
        ({"images": torch.zeros(0, 1, 6, 6), "labels": torch.zeros(0).long()}, "there are no images"),
        ({"labels": torch.zeros(NUM - 1).long()}, "a class number for each image"),
        ({"labels": torch.zeros(NUM)}, "a class number for each image"),
        (
            {"labels": torch.full((NUM,), 10)},
            "label 10 of image 0 is no class of the model, whose 10 are numbered from 0",
        ),
        ({"labels": torch.arange(NUM) % 10 - 1}, r"label -1 of image 0 is no class of .* \(4 such labels\): leave"),
        ({"norm": "l2", "images": torch.zeros(NUM, 1, 4, 9)}, "5 x 5 pixels or more"),
        (
            {"model": lambda x: torch.zeros(len(x), 3), "labels": torch.zeros(NUM).long()},
            "needs 10 classes; the model has 3: give attacks without",
        ),
        ({"model": lambda x: x.flatten(1)[:, :9], "labels": torch.zeros(NUM).long()}, "has 9: give 8 targets, which"),
        ({"model": lambda x: x.flatten(1)[:, :1], "labels": torch.zeros(NUM).long(), "attacks": ()}, "has one class"),
        ({"model": lambda x: x}, r"returns \[5, 1, 6, 6\] for 5 images, not logits"),
        ({"model": lambda x: torch.zeros(1, 10)}, r"returns \[1, 10\] for 5 images"),
        ({"model": lambda x: (x,)}, "returns tuple"),
        ({"model": lambda x: torch.full((len(x), 10), float("nan"))}, "returns NaN"),
        ({"model": lambda x: torch.full((len(x), 10), float("inf"))}, "returns NaN or infinity"),
    ],
)
def test_bad_input_is_refused_in_one_line_before_anything_is_attacked(run, calls, settings, says):
    with pytest.raises(UserError, match=says) as error:
        run(**settings)
    assert "\n" not in str(error.value) and not calls


def test_three_classes_are_enough_for_what_has_no_targets(run):
    model = lambda x: x.flatten(1)[:, :3]  # noqa: E731
    result = run(model, labels=torch.zeros(NUM).long(), attacks=("apgd-ce", "square"))
    assert result.robust < 100


def test_a_model_is_checked_before_it_is_attacked(net):
    images, _ = images_and_labels(net)
    check_model(net, images, 10)
    check_model(net, images.float() / 255, 10)
    for bad, say in (
        ((net, images, 9), r"returns \[2, 10\] for 2 images, not logits \[2, 9\]"),
        ((nn.Flatten().eval(), images, 10), r"returns \[2, 36\]"),
        ((net, images[..., :5], 10), r"takes no images \[2, 1, 6, 5\]"),
        ((net, images.float(), 10), r"not in \[0, 1\]"),
        ((net, images[:0], 10), "there are no images"),
    ):
        with pytest.raises(UserError, match=say):
            check_model(*bad)


def test_a_model_in_train_mode_is_refused_even_if_only_a_part_of_it_is(net):
    images, _ = images_and_labels(net)
    model = nn.Sequential(net, nn.Dropout()).eval()
    model[1].train()
    with pytest.raises(UserError, match=r"in train mode \(in 1\): call its eval"):
        check_model(model, images, 10)


# --- going on


class Stop(Exception):
    """The evaluation is interrupted."""


def interrupted(run: Run, calls: list, name: str, state: Path, **settings) -> None:
    """Run until the second batch of the attack `name` is under way."""

    def advance(amount: float) -> None:
        if [of for of, *_ in calls].count(name) == 2:
            raise Stop

    with pytest.raises(Stop):
        run(state=state, advance=advance, **settings)


@NORMS
def test_interrupted_in_every_attack_it_goes_on_and_ends_in_the_same_bits(whole, run, calls, tmp_path, norm):
    _, _, result, all_calls = whole(norm)
    done = 0
    for name in STANDARD:
        calls.clear()
        interrupted(run, calls, name, tmp_path / "state", norm=norm)
        done += len(calls) - 1
        assert len(list((tmp_path / "state").glob("?-*.safetensors"))) == done
    calls.clear()
    told: list[float] = []
    resumed = run(norm=norm, state=tmp_path / "state", advance=told.append)
    assert_same(resumed, result)
    assert len(calls) == len(all_calls) - done and sum(told) == pytest.approx(NUM)
    calls.clear()
    again = run(norm=norm, state=tmp_path / "state")
    assert not calls, "nothing is done twice"
    assert_same(again, result)
    assert again.seconds == resumed.seconds


def test_warnings_and_what_was_not_confirmed_survive_an_interruption(net, run, calls, tmp_path, monkeypatch):
    replace_attack(monkeypatch, "apgd-ce", claims_all(0.5))
    rounded = lambda x: net((x * 16).round() / 16)  # noqa: E731
    whole = run(rounded)
    calls.clear()
    interrupted(run, calls, "square", tmp_path, model=rounded)
    assert_same(run(rounded, state=tmp_path), whole)
    assert len(whole.unconfirmed["apgd-ce"]) > 0 and len(whole.warnings) == 4


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"eps": 0.05}, "eps"),
        ({"norm": "l2", "eps": EPS["linf"]}, "norm"),
        ({"seed": 4}, "seed"),
        ({"batch": 6}, "batch"),
        ({"attacks": ("apgd-ce",)}, "attacks"),
        ({"images": torch.zeros(NUM, 1, 6, 6, dtype=torch.uint8)}, "images"),
        ({"labels": torch.ones(NUM).long()}, "labels"),
        ({"targets": 3}, "targets"),
        ({"steps": 3}, "steps"),
        ({"step": 0.1}, "step"),
        ({"searching": lambda x: x.flatten(1)[:, :10]}, "searched_apart"),
    ],
)
def test_the_state_of_another_evaluation_is_refused(run, calls, tmp_path, change, named):
    interrupted(run, calls, "apgd-ce", tmp_path)
    with pytest.raises(UserError, match=rf"belongs to another evaluation \({named}\): give the same, or another dir"):
        run(state=tmp_path, **change)


def test_the_state_of_another_model_is_refused_be_it_only_scaled(net, run, calls, tmp_path):
    interrupted(run, calls, "apgd-ce", tmp_path)
    with pytest.raises(UserError, match="belongs to another model: delete it, or give"):
        run(lambda x: 2 * net(x), state=tmp_path)
    # Another algorithm's roundings are no other model.
    run(lambda x: net(x) * (1 + 1e-5), state=tmp_path)


def test_a_resumed_run_takes_its_targets_from_the_first_sessions_logits(net, run, calls, tmp_path, monkeypatch):
    def attack(logits_of, x, y, rows, conditions):
        seen.append(conditions.clean_logits)
        return Found(x, y < 0, y >= 0)

    seen: list[Tensor] = []
    interrupted(run, calls, "apgd-ce", tmp_path)
    replace_attack(monkeypatch, "fab-t", attack)
    run(lambda x: net(x) * (1 + 1e-4), state=tmp_path)
    assert seen and torch.isin(torch.cat(seen), load_file(tmp_path / "clean.safetensors")["logits"]).all()


def test_a_damaged_or_foreign_directory_is_refused(run, calls, tmp_path):
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/notes.txt").touch()
    (tmp_path / "foreign/.notes.tmp").write_text("precious")
    with pytest.raises(UserError, match="holds other files: give an empty directory"):
        run(state=tmp_path / "foreign")
    assert {path.name for path in (tmp_path / "foreign").iterdir()} == {"notes.txt", ".notes.tmp"}
    with pytest.raises(UserError, match="cannot use the directory"):
        run(state=tmp_path / "foreign/notes.txt")
    state = tmp_path / "state"
    interrupted(run, calls, "apgd-t", state)
    (state / "2-apgd-t-00000.safetensors").write_bytes(b"cut off")
    with pytest.raises(UserError, match=r"00000.safetensors is damaged: delete it, and what it holds is done again"):
        run(state=state)
    (state / "1-apgd-ce-00000.safetensors").replace(state / "1-apgd-ce-00001.safetensors")
    with pytest.raises(UserError, match="does not fit what was done before"):
        run(state=state)
    for text in ("{", "[]"):
        (state / "autoattack.json").write_text(text)
        with pytest.raises(UserError, match="is damaged"):
            run(state=state)


def test_what_a_killed_process_had_begun_to_write_is_removed_and_nothing_else(run, calls, tmp_path):
    (tmp_path / ".autoattack.json.fastarat-999999999-00000000.tmp").write_text("{")
    interrupted(run, calls, "apgd-ce", tmp_path)
    (tmp_path / ".1-apgd-ce-00001.safetensors.fastarat-999999999-00000000.tmp").write_bytes(b"half")
    (tmp_path / ".notes.tmp").write_text("precious")
    run(state=tmp_path)
    assert [path.name for path in tmp_path.glob(".*")] == [".notes.tmp"]


def with_one_more(kept: dict[str, Tensor], place: int) -> None:
    kept["broken"] = torch.cat([kept["broken"], torch.tensor([place])])
    kept["x_adv"] = torch.cat([kept["x_adv"], kept["x_adv"][:1]])


IMPOSSIBLE = {
    "an image of another batch": lambda kept: with_one_more(kept, 38),
    "an image twice": lambda kept: with_one_more(kept, int(kept["broken"][-1])),
    "an image that there is not": lambda kept: kept["broken"].__setitem__(0, -100),
    "images that are no numbers": lambda kept: kept.update(broken=kept["broken"].float()),
    "fewer adversarial images": lambda kept: kept.update(x_adv=kept["x_adv"][1:]),
    "smaller adversarial images": lambda kept: kept.update(x_adv=kept["x_adv"][..., 1:].contiguous()),
    "a pixel outside the ball": lambda kept: kept["x_adv"].view(-1)[:1].copy_(kept["x_adv"].view(-1)[:1] < 0.5),
    "a pixel above 1": lambda kept: kept["x_adv"].view(-1).__setitem__(0, 77),
    "a pixel that is no number": lambda kept: kept["x_adv"].view(-1).__setitem__(0, float("nan")),
    "found and refused": lambda kept: kept.update(unconfirmed=kept["broken"][:1].clone()),
    "undefined but not broken": lambda kept: kept.update(
        undefined=kept["rows"][~torch.isin(kept["rows"], kept["broken"])]
    ),
    "not attackable but broken": lambda kept: kept.update(not_attackable=kept["broken"].clone()),
    "not attackable of another batch": lambda kept: kept.update(not_attackable=kept["rows"][-1:] + 1),
    "one count": lambda kept: kept.update(zero_gradients=torch.tensor([1])),
    "more than all": lambda kept: kept.update(zero_gradients=torch.tensor([2, 1])),
    "three times": lambda kept: kept.update(seconds=torch.zeros(3).double()),
    "less than no time": lambda kept: kept.update(seconds=torch.tensor(-1.0).double()),
    "no times": lambda kept: kept.pop("seconds"),
}


@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_a_kept_batch_that_no_attack_can_have_given_is_refused_though_its_checksum_is_right(run, calls, tmp_path, what):
    interrupted(run, calls, "apgd-ce", tmp_path, eps=0.1)
    [file] = tmp_path.glob("1-*")
    kept = load_file(file)
    assert len(kept["broken"]) > 1
    IMPOSSIBLE[what](kept)
    write_tensors(file, kept)
    with pytest.raises(UserError, match=f"{file.name} in .* does not fit what was done before: delete it and all lat"):
        run(state=tmp_path, eps=0.1)


@pytest.mark.parametrize("kept", [{"x": torch.zeros(1)}, {"logits": torch.zeros(3)}], ids=["no logits", "other ones"])
def test_clean_logits_that_cannot_be_are_refused(run, calls, tmp_path, kept):
    interrupted(run, calls, "apgd-ce", tmp_path)
    write_tensors(tmp_path / "clean.safetensors", kept)
    with pytest.raises(UserError, match=r"clean.safetensors in .* does not fit what was done before"):
        run(state=tmp_path)


@pytest.mark.parametrize("count", [FEW // 3, pytest.param(MANY, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["autoattack.json", "clean.safetensors", "1-apgd-ce-00001.safetensors"])
def test_a_damaged_state_is_refused_or_gives_the_same_result(run, tmp_path, name, count):
    def kept() -> tuple:
        result = run(state=tmp_path, attacks=("apgd-ce",))
        return broken_by(result).tolist(), result.x_adv.tolist()

    kept()
    file = tmp_path / name
    assert outcomes(file, file.read_bytes(), count, kept)["refused"] > 0.9 * count


CHILD = """
import sys
from pathlib import Path
import torch
from torch import nn
from fastarat.config.evaluation import EvaluationSettings
from fastarat.evaluation.autoattack.driver import autoattack
torch.set_num_threads(1)
torch.manual_seed(0)
net = nn.Sequential(nn.Flatten(), nn.Linear(36, 48), nn.ReLU(), nn.Linear(48, 10)).eval().requires_grad_(False)
x = torch.rand(40, 1, 6, 6)
state = Path(sys.argv[2]) if len(sys.argv) > 2 else None
settings = EvaluationSettings(norm="linf", eps=0.02, batch=10)
result = autoattack(net, x, net(x).argmax(1), settings, state=state)
torch.save((result.rows, result.x_adv, result.flags), sys.argv[1])
"""


@pytest.mark.slow
def test_killed_in_each_of_the_four_attacks_it_ends_in_the_same_bits(tmp_path):
    def start(*args: Path) -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "-c", CHILD, *map(str, args)], env={"PYTHONPATH": ":".join(sys.path)})

    state, out = tmp_path / "state", tmp_path / "killed.pt"
    for number, name in enumerate(STANDARD, 1):
        process = start(out, state)
        while not (state / f"{number}-{name}-00000.safetensors").exists():
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.002)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert not list(state.glob(f"{number + 1}-*")), "it was killed in a later attack"
    assert start(out, state).wait() == 0 and start(tmp_path / "whole.pt").wait() == 0
    killed, whole = (torch.load(tmp_path / f"{which}.pt") for which in ("killed", "whole"))
    assert torch.equal(killed[0], whole[0]) and torch.equal(killed[1], whole[1])
    assert all(torch.equal(flags, whole[2][name]) for name, flags in killed[2].items())


# --- the kit: stored results of the standard


@pytest.fixture
def kit(golden) -> Path:
    """The folder of AutoAttack's golden vectors; the test is skipped where it is absent."""
    if not (golden / "autoattack").is_dir():
        pytest.skip("shared/golden/autoattack is not here")
    return golden / "autoattack"


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
