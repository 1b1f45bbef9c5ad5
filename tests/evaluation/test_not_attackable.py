"""An attack goes on where a gradient is none, and what it could not search is never taken for robust without a word."""

import json
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

import fastarat
from fastarat.attacks.every_iterate import careful_gradient, one_restart
from fastarat.attacks.pgd import input_gradient
from fastarat.config.attack import AttackConfig
from fastarat.evaluation.autoattack import driver
from tests.helpers.attacks import shorten
from tests.helpers.spoiled import NanAbove, Spoiled, in_part, infinite, largest_of_rest, nan, zero

GRADIENTS = ("pgd", "cw", "apgd-ce", "apgd-t", "fab-t")
EPS = {"linf": 0.04, "l2": 0.16}
NUM = 12
MARKED = torch.arange(NUM) % 3 == 1
NORMS = pytest.mark.parametrize("norm", ["linf", "l2"])
BY_GRADIENT = pytest.mark.parametrize("attack", GRADIENTS)


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 24), nn.ReLU(), nn.Linear(24, 10)).double().eval()


@pytest.fixture
def images() -> Tensor:
    """Of which those that are `MARKED` have gradients that a `Spoiled` net spoils."""
    x = torch.rand(NUM, 1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x[:, 0, 0, 0] = MARKED.double()
    return x


@pytest.fixture(scope="module")
def digits() -> tuple[nn.Module, Tensor, Tensor]:
    """A net that has learnt digits, and 100 test images in float32 with their labels."""
    data = fastarat.open_dataset("digits")
    x, known = (
        torch.tensor(part.images).permute(0, 3, 1, 2).float() / data.max_value for part in (data.test, data.train)
    )
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(known), torch.tensor(data.train.labels)).backward()
        optimizer.step()
    return net.eval(), x[:100], torch.tensor(data.test.labels)[:100]


class Times(nn.Module):
    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


@pytest.fixture(autouse=True)
def short(monkeypatch) -> None:
    """The standard's attacks cut down to a fraction of their work."""
    of_apgd = {"steps": 25}
    shorten(monkeypatch, {"apgd-ce": of_apgd, "apgd-t": of_apgd, "fab-t": {"steps": 12}, "square": {"queries": 200}})


def attacked(model: nn.Module, x: Tensor, attack: str, norm: str, part=1.0, **settings) -> fastarat.Evaluation:
    """By labels that make every image right."""
    with torch.no_grad():
        y = getattr(model, "net", model)(x).argmax(1)
    return fastarat.evaluate(model.eval(), x, y, attack, norm=norm, eps=part * EPS[norm], targets=1, **settings)


def says(found: fastarat.Evaluation, *words: str) -> bool:
    return any(all(word in warning for word in words) for warning in found.warnings)


@NORMS
@BY_GRADIENT
@pytest.mark.parametrize(("spoil", "like"), [(nan, zero), (infinite, largest_of_rest)])
def test_entries_that_are_none_count_as_zero_or_by_their_sign_and_only_nan_makes_a_search_no_evidence(
    net, images, attack, norm, spoil, like
):
    ours = attacked(Spoiled(net, in_part(spoil)), images, attack, norm)
    theirs = attacked(Spoiled(net, in_part(like)), images, attack, norm)
    assert torch.equal(ours.rows, theirs.rows) and torch.equal(ours.x_adv, theirs.x_adv)
    assert 0 < len(ours.rows) < NUM, "the attack finds something"
    # What is infinite has a sign, but a search by the pixels that are no NaN is no evidence.
    missed = (MARKED & ours.flags[attack]).nonzero().flatten() if spoil is nan else torch.tensor([])
    assert ours.not_attackable[attack].tolist() == missed.tolist() and ours.num_not_attackable == len(missed)
    assert says(ours, f"not attackable by {attack}") if len(missed) else ours.warnings == theirs.warnings
    plain = attacked(net, images, attack, norm)
    assert torch.equal(ours.rows[~MARKED[ours.rows]], plain.rows[~MARKED[plain.rows]])
    assert torch.equal(ours.x_adv[~MARKED[ours.rows]], plain.x_adv[~MARKED[plain.rows]])


@NORMS
@BY_GRADIENT
def test_images_whose_gradient_is_nan_everywhere_are_named_and_the_others_are_as_without_them(
    net, images, attack, norm
):
    plain, found = (attacked(model, images, attack, norm, part=0.3) for model in (net, Spoiled(net, nan)))
    left = MARKED & found.flags[attack]
    assert left.any() and found.not_attackable[attack].tolist() == left.nonzero().flatten().tolist()
    assert found.num_not_attackable == left.sum() and found.to_json()["not_attackable"] == {attack: int(left.sum())}
    assert says(found, f"{int(left.sum())} of {NUM} images were not attackable by {attack}")
    assert says(found, "No attack could search", "Add square")
    assert torch.equal(found.flags[attack][~MARKED], plain.flags[attack][~MARKED])
    json.dumps(found.to_json())


@NORMS
@BY_GRADIENT
def test_a_gradient_that_is_nan_at_one_point_is_left_behind(net, images, attack, norm):
    """The start, where fab-t is the image itself and the others are random points: the first that are asked about."""
    seen: list[Tensor] = []

    def spoil(gradient: Tensor) -> Tensor:
        seen.append(gradient)
        return nan(gradient) if len(seen) == 1 else gradient

    x, plain = images[MARKED], attacked(net, images[MARKED], attack, norm)
    found = attacked(Spoiled(net, lambda g: g), x, attack, norm)
    model = Spoiled(net, spoil)
    seen.clear()
    spoiled = attacked(model, x, attack, norm)
    assert torch.equal(found.rows, plain.rows)
    assert len(spoiled.not_attackable[attack]) == 0 and spoiled.warnings == plain.warnings
    assert abs(spoiled.robust - plain.robust) <= 100 * 1.01 / len(x)


@NORMS
@pytest.mark.parametrize("spoil", [nan, zero])
def test_pgd_without_a_gradient_tries_another_point_of_the_ball_at_every_step(net, images, norm, spoil):
    tried, x = [], images[MARKED]
    model = Spoiled(net, spoil)

    def logits_of(v: Tensor) -> Tensor:
        tried.append(v.detach())
        return model(v)

    attack = AttackConfig(norm=norm, eps_255=255 * EPS[norm], step_255=1, steps=6, batch_norm="eval", start="none")
    y = net(x).argmax(1)
    found = one_restart(logits_of, x, y, torch.arange(len(x)), attack, 0, 0).found
    points = torch.stack(tried)
    assert not found.attackable.any() and len(points) == 7
    for first in range(7):
        for second in range(first):
            assert (points[first] != points[second]).flatten(1).any(1).all()
    shifts = (points - x).flatten(2)
    lengths = shifts.abs().amax(2) if norm == "linf" else shifts.norm(dim=2)
    assert lengths.max() <= EPS[norm] + 1e-12 and points.min() >= 0 and points.max() <= 1
    alone = one_restart(model, x[2:3], y[2:3], torch.tensor([2]), attack, 0, 0).last
    torch.testing.assert_close(alone, points[-1:, 2], rtol=0, atol=1e-12)


@NORMS
@pytest.mark.parametrize(
    ("attack", "is_misled"),
    [("pgd", True), ("apgd-ce", True), ("pgd,square", True), ("square", False), ("cw", False), ("pgd,cw", False)],
)
def test_where_logits_are_small_a_result_by_cross_entropy_alone_is_warned_of(digits, norm, attack, is_misled):
    """No factor changes what cw leaves, and pgd leaves more."""
    net, x, y = digits
    eps = {"linf": 0.05, "l2": 0.25}[norm]
    usual, small, tiny = (
        fastarat.evaluate(nn.Sequential(net, Times(factor)).eval(), x, y, attack, norm=norm, eps=eps)
        for factor in (1, 0.05, 1e-6)
    )
    assert not says(usual, "logits are small")
    assert says(small, "logits are small", "cw or autoattack") == says(tiny, "logits are small") == is_misled
    if attack in ("pgd", "cw"):
        assert (small.robust > usual.robust + 2) == (tiny.robust > usual.robust + 2) == is_misled


def test_two_classes_have_no_logits_that_are_too_small(digits):
    """Of one wrong class the cross-entropy's gradient is the margin's, times a factor."""
    net, x, y = digits
    two = nn.Sequential(net, Times(0.01), nn.Linear(10, 2)).eval()
    with torch.no_grad():
        y = two(x).argmax(1)
    assert fastarat.evaluate(two, x, y, "pgd", eps=0.01).warnings == ()


@NORMS
def test_where_logits_are_large_pgd_raises_the_margin_and_apgd_ce_stays_the_standards(net, images, norm):
    class Large(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 1e6 * net(x)

    pgd, cw, apgd_ce = (attacked(Large(), images, attack, norm) for attack in ("pgd", "cw", "apgd-ce"))
    assert torch.equal(pgd.flags["pgd"], cw.flags["cw"]) and 0 < pgd.robust < 100 and pgd.warnings == ()
    assert pgd.robust <= attacked(net, images, "pgd", norm).robust + 100 / NUM
    assert apgd_ce.robust > 80 and says(apgd_ce, "of apgd-ce began with a gradient of exactly zero", "not attackable")
    assert len(apgd_ce.not_attackable["apgd-ce"]) == apgd_ce.counts["apgd-ce"]


@NORMS
@pytest.mark.parametrize("factor", [10, 40, 160])
def test_a_factor_on_the_logits_of_a_sure_net_hides_nothing_from_pgd(digits, norm, factor):
    """The label's probability rounds to 1 in float32 long before the other classes' round to 0."""
    net, x, y = digits
    eps = {"linf": 0.1, "l2": 0.6}[norm]
    large = nn.Sequential(net, Times(factor)).eval()
    pgd, cw = (fastarat.evaluate(large, x, y, attack, norm=norm, eps=eps) for attack in ("pgd", "cw"))
    assert pgd.counts["pgd"] <= cw.counts["cw"] + 1 < 0.5 * len(x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("factor", [0.1, 1, 3, 10])
def test_the_margin_is_raised_for_images_whose_cross_entropy_is_rounded_away_and_for_no_others(digits, factor, dtype):
    net, x, y = digits
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    net, x = deepcopy(net).to(wide), x.to(wide)

    def logits_of(v: Tensor) -> Tensor:
        return (factor * net(v)).to(dtype)

    by, margins = (
        AttackConfig(norm="linf", eps_255=8, step_255=2, steps=1, batch_norm="eval", objective=name)
        for name in ("cross-entropy", "margin")
    )
    found, logits = careful_gradient(by, logits_of, x, y, None, torch.zeros_like(y, dtype=torch.bool))
    plain, margin = (input_gradient(settings, logits_of, x, y, None)[0] for settings in (by, margins))
    others = logits.double().softmax(1).scatter(1, y[:, None], 0).sum(1)
    unit = torch.finfo(wide).eps / 2  # to a multiple of which the label's probability is rounded
    certain, lost = others > 1000 * unit, others < unit / 2
    assert certain.any() and torch.equal(found[certain], plain[certain])
    assert torch.equal(found[lost], margin[lost])
    assert factor < 10 or dtype == torch.float64 or lost.any()


@NORMS
@BY_GRADIENT
def test_a_gradient_of_zero_everywhere_is_named(net, images, attack, norm):
    found = attacked(Spoiled(net, zero), images, attack, norm)
    assert found.not_attackable[attack].tolist() == (MARKED & found.flags[attack]).nonzero().flatten().tolist() != []
    assert says(found, f"not attackable by {attack}")


@NORMS
@pytest.mark.parametrize("attack", [*GRADIENTS, "square"])
def test_logits_that_are_nan_under_attack_are_wrong_for_every_class_and_named(net, images, attack, norm):
    # fab-t, whose first step is the shortest one, meets NaN later, or not at all.
    found = attacked(NanAbove(net, 1e-6), images[~MARKED], attack, norm)
    x, y = found.x_adv, found.labels[found.rows]
    broken_so = NanAbove(net, 1e-6)(x).isnan().any(1)
    assert found.undefined[attack].tolist() == found.rows[broken_so].tolist()
    assert found.to_json()["undefined_logits"] == {"clean": 0, attack: int(broken_so.sum())}
    if attack != "fab-t":
        assert broken_so.any() and says(found, f"{int(broken_so.sum())} image", f"under {attack}: counted as")
    assert (net(x)[~broken_so].argmax(1) != y[~broken_so]).all()


@pytest.mark.parametrize("attack", ["pgd", "apgd-ce", "square"])
def test_class_0_is_broken_by_nan_as_any_other(net, images, attack):
    x = images[~MARKED]
    y = torch.zeros(len(x), dtype=torch.int64)
    model = NanAbove(lambda v: net(v) * 0 + 9 * torch.eye(10, dtype=torch.float64)[0] + 0 * v.mean(), 1e-6)
    found = fastarat.evaluate(model.eval(), x, y, attack, eps=0.04, restarts=8)
    assert found.clean == 100 and found.robust < 100
    assert found.undefined[attack].tolist() == found.rows.tolist()


@pytest.mark.parametrize(
    ("value", "where", "broken"),
    [(torch.inf, slice(0, 1), False), (torch.inf, slice(0, 2), True), (torch.inf, slice(1, 2), True),
     (-torch.inf, slice(1, None), False), (-torch.inf, slice(None), True)],
    ids=["label alone inf", "inf twice", "another inf", "others -inf", "all -inf"],
)  # fmt: skip
@BY_GRADIENT
def test_infinite_logits_say_what_their_largest_says(images, attack, value, where, broken):
    """A net of class 0 everywhere, whose logits are infinite everywhere but at the clean images."""
    classes = torch.linspace(1, 0, 10, dtype=torch.float64)
    model = NanAbove(lambda v: classes + 1e-3 * v.flatten(1)[:, :10], 0.0, value, where)
    x = images[~MARKED]
    x[:, 0, 0, 0] = 0
    y = torch.zeros(len(x), dtype=torch.int64)
    found = fastarat.evaluate(model.eval(), x, y, attack, eps=0.04, targets=1, restarts=4)
    assert found.clean == 100
    if not broken:
        assert found.robust == 100
    elif attack != "fab-t":  # it stays near the clean image, where they are finite
        assert found.robust < 100


class LargestAlone(nn.Module):
    """Rules out all classes but the first by -inf, or makes it the first by +inf."""

    def __init__(self, value: float):
        super().__init__()
        self.value = value

    def forward(self, z: Tensor) -> Tensor:
        largest = z >= z.amax(1, keepdim=True)
        return z.masked_fill(largest if self.value > 0 else ~largest, self.value)


@NORMS
@pytest.mark.parametrize("attack", ["pgd", "cw"])
@pytest.mark.parametrize("value", [torch.inf, -torch.inf])
def test_robust_images_whose_margin_is_infinite_are_named(net, images, attack, norm, value):
    found = attacked(nn.Sequential(net, LargestAlone(value)), images, attack, norm)
    assert found.num_not_attackable == found.counts[attack] > 0
    assert says(found, f"were not attackable by {attack}")


@pytest.mark.parametrize("attack", ["pgd", "apgd-ce"])
def test_clean_logits_that_are_nan_are_wrong_and_named_and_those_that_are_so_everywhere_refused(net, images, attack):
    y = net(images).argmax(1)
    found = fastarat.evaluate(NanAbove(net, 0.5).eval(), images, y, attack, eps=0.01)
    assert not found.flags["clean"][MARKED].any() and found.flags["clean"][~MARKED].all()
    assert found.undefined["clean"].tolist() == MARKED.nonzero().flatten().tolist()
    assert says(found, f"for {int(MARKED.sum())} images as they are")
    with pytest.raises(fastarat.UserError, match="NaN or infinity for all clean images"):
        fastarat.evaluate(NanAbove(net, -1).eval(), images, y, attack)


def test_what_could_not_be_attacked_is_kept_and_told_again(net, images, tmp_path, monkeypatch):
    model = Spoiled(net, nan)
    attacks = "pgd,apgd-ce"
    first = attacked(model, images, attacks, "linf", state=tmp_path, batch=7)
    monkeypatch.setattr(driver, "_batch", None)  # nothing is done anew
    again = attacked(model, images, attacks, "linf", state=tmp_path, batch=7)
    assert first.warnings == again.warnings != ()
    for name in ("pgd", "apgd-ce"):
        assert torch.equal(first.not_attackable[name], again.not_attackable[name])
    assert first.num_not_attackable == again.num_not_attackable > 0


def test_an_image_that_one_attack_searched_has_evidence(net, images):
    found = attacked(Spoiled(net, nan), images, "pgd,square", "linf")
    assert len(found.not_attackable["pgd"]) > 0 == len(found.not_attackable["square"]) == found.num_not_attackable
    assert says(found, "not attackable by pgd") and not says(found, "No attack could search")


def test_square_names_the_images_whose_margin_it_never_saw(net, images):
    sure = NanAbove(lambda v: net(v) * 0 + torch.arange(10, 0, -1) + 0 * v.sum(), 0.5, torch.inf, slice(0, 1))
    found = fastarat.evaluate(sure.eval(), images, torch.zeros(NUM, dtype=torch.int64), "square", eps=0.04)
    assert found.robust == 100 and found.not_attackable["square"].tolist() == MARKED.nonzero().flatten().tolist()
    assert says(found, "not attackable by square", "no finite margin")
