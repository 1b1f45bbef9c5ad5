"""`fastarat.evaluate`: any model under any attack, which is left as it was, and what an `Evaluation` says."""

import importlib
import json

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fastarat
from fastarat import AttackConfig, UserError
from fastarat.common.errors import WorkError
from fastarat.config.evaluation import EvaluationSettings
from fastarat.data.images.dataset import Images
from fastarat.evaluation.evaluate import departures
from tests.helpers.attacks import attack_of, autoattacked, broken_by, replace_attack, shorten

pytestmark = pytest.mark.usefixtures("short_attacks")
EPS = 0.03


ATTACKS = pytest.mark.parametrize("attack", ["pgd", "cw", "apgd-ce", "apgd-t", "fab-t", "square", "autoattack"])


@ATTACKS
def test_every_attack_is_counted_by_images_that_are_wrong_inside_the_ball(net, images, labels, attack):
    result = fastarat.evaluate(net, images, labels, attack, eps=EPS, batch=8)
    assert result.clean == 95 and result.complete and result.options == () and result.num_images == 20
    assert list(result.flags) == ["clean", *EvaluationSettings(attack).names]
    assert result.robust == 5 * int(list(result.flags.values())[-1].sum()) == list(result.after.values())[-1] < 95
    with torch.no_grad():
        assert (net(result.x_adv).argmax(1) != labels[result.rows]).all()
    assert (result.x_adv - images[result.rows]).abs().max() <= EPS + 1e-6
    assert 0 not in result.rows and len(result.rows) == result.counts["clean"] - list(result.counts.values())[-1]


@pytest.mark.parametrize(("attack", "objective"), [("pgd", "cross-entropy"), ("cw", "margin")])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pgd_is_the_one_by_which_training_is_measured(net, images, attack, objective, norm):
    pixels = (images * 255).byte()
    with torch.no_grad():
        labels = net(pixels.float() / 255).argmax(1)
    eps = EPS if norm == "linf" else 0.2
    settings = AttackConfig(norm=norm, eps_255=255 * eps, step_255=64 * eps, steps=3, objective=objective)
    stored = Images(pixels.permute(0, 2, 3, 1).contiguous().numpy(), labels.numpy())
    _, theirs = fastarat.accuracies(net, stored, 255, 10, settings, fastarat.AccuracySettings(restarts=2, seed=5))
    ours = fastarat.evaluate(
        net, pixels, labels, attack, norm=norm, eps=eps, steps=3, step=64 * eps / 255, restarts=2, seed=5
    )
    assert ours.accuracy(attack) == theirs and 0 < ours.robust < 100


def test_bf16_finds_are_confirmed_in_float32_and_what_is_not_is_searched_again(net, images, labels):
    result = fastarat.evaluate(net, images, labels, "pgd,square", eps=EPS, dtype="bf16")
    plain = fastarat.evaluate(net, images, labels, "pgd,square", eps=EPS)
    assert "bf16" in result.options[0] and result.warnings == plain.warnings
    assert abs(result.robust - plain.robust) <= 5
    with torch.no_grad():
        assert (net(result.x_adv).argmax(1) != labels[result.rows]).all()


@pytest.mark.parametrize("attack", ["fab-t", "square"])
def test_bf16_leaves_no_more_images_than_float32(attack, monkeypatch):
    """In a last layer of bfloat16 margins tie: FAB and Square, which compare them, then left 10 and 6 % more."""
    torch.manual_seed(1)
    shorten(monkeypatch, {"fab-t": {"steps": 30}, "square": {"queries": 1000}})
    layers = nn.Linear(192, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
    net, images = nn.Sequential(nn.Flatten(), *layers).eval(), torch.rand(60, 3, 8, 8)
    with torch.no_grad():
        net[5].weight *= 8
        labels = net(images).argmax(1)
    left = [
        fastarat.evaluate(net, images, labels, attack, eps=4 / 255, dtype=dtype).robust for dtype in ("fp32", "bf16")
    ]
    assert left[1] - left[0] <= 100 / 60 and 0 < left[0] < 100  # an image may stop short of the edge by a rounding


def test_in_bf16_layers_may_be_called_by_keyword_and_share_weights(images, labels):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.middle, self.last = nn.Linear(192, 10), nn.Linear(10, 10), nn.Linear(10, 10)
            self.middle.weight = self.last.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.last(input=self.middle(self.first(input=x.flatten(1)).relu()).relu())

    assert fastarat.evaluate(Net().eval(), images, labels, "pgd", eps=EPS, dtype="bf16").complete


def test_bf16_is_refused_where_the_logits_come_out_in_it(net, images, labels):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.features, self.weight = net[:3], net[3].weight

        def forward(self, x: Tensor) -> Tensor:
            return self.features(x) @ self.weight.T

    model = Net().eval()
    assert fastarat.evaluate(model, images, labels, "pgd", eps=EPS).complete
    with pytest.raises(UserError, match=r"logits come out in bfloat16, too coarse to be attacked: let an nn\.Linear"):
        fastarat.evaluate(model, images, labels, "pgd", eps=EPS, dtype="bf16")


def test_what_is_kept_of_other_weights_is_refused(net, images, labels, tmp_path):
    fastarat.evaluate(net, images, labels, "pgd", eps=EPS, state=tmp_path)
    with torch.no_grad():
        net[3].bias += 1e-6  # moves no logit by what another convolution's algorithm would not
    with pytest.raises(UserError, match=r"belongs to another evaluation \(weights\)"):
        fastarat.evaluate(net, images, labels, "pgd", eps=EPS, state=tmp_path)


def test_a_search_in_another_precision_that_finds_nothing_true_is_made_up_for(net, images, labels):
    lying = lambda x: -net(x)  # noqa: E731 - wrong everywhere, so that whatever it finds is refused
    settings = {"norm": "linf", "eps": EPS, "attacks": ("pgd",)}
    apart = autoattacked(net, images, labels, searching=lying, **settings)
    plain = autoattacked(net, images, labels, **settings)
    assert torch.equal(broken_by(apart), broken_by(plain)) and len(apart.unconfirmed["pgd"]) == 0 < len(apart.rows)


def test_the_model_is_left_as_it_was(net, images, labels):
    net[0].weight.requires_grad_(False)
    before = [(p.data.clone(), p.requires_grad, p.stride()) for p in net.parameters()]
    fastarat.evaluate(net, images, labels, "apgd-ce,fab-t", eps=EPS)
    after = [(p.data, p.requires_grad, p.stride()) for p in net.parameters()]
    for (data, wanted, stride), (now, wants, strides) in zip(before, after, strict=True):
        assert torch.equal(data, now) and wanted == wants and stride == strides
    assert all(p.grad is None for p in net.parameters()) and not net.training


def test_convolutions_see_channels_last_unless_the_model_cannot(net, images, labels):
    seen = []

    class Net(nn.Module):
        def __init__(self, views: bool):
            super().__init__()
            self.net, self.views = net, views

        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.is_contiguous(memory_format=torch.channels_last))
            return self.net(x.view(len(x), -1).view(x.shape) if self.views else x)

    results = []
    for views in (False, True):
        seen.clear()
        results.append(fastarat.evaluate(Net(views).eval(), images, labels, "pgd", eps=EPS).counts)
        assert seen[-1] != views
    assert results[0] == results[1]


def test_where_the_machine_has_too_little_memory_the_batch_is_named(net, images, labels, monkeypatch):
    """In the middle of the work: what a net takes at first, it may not take later."""
    forward = net.forward
    monkeypatch.setattr(net, "forward", lambda x: forward(x) if len(x) < 3 else torch.empty(2**50))
    with pytest.raises(WorkError, match=r"^out of memory at batch 12: give a smaller batch$"):
        fastarat.evaluate(net, images, labels, "pgd", batch=12)


def test_a_net_with_two_branches_is_measured_by_its_adversarial_one(images):
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
    split = fastarat.convert_to_split_batch_norm(nn.Sequential(*layers)).eval()
    with torch.no_grad():
        split[1].bias.copy_(torch.randn(2, 8))
    plain = fastarat.plain_branch(split, "adv").eval()
    with torch.no_grad():
        labels = plain(images).argmax(1)
    both = [fastarat.evaluate(model, images, labels, "pgd", eps=EPS) for model in (split, plain)]
    assert both[0].clean == both[1].clean == 100 and both[0].counts == both[1].counts


def test_clean_accuracy_alone_and_the_first_images_alone(net, images, labels):
    result = fastarat.evaluate(net, images, labels, "none", num_images=10)
    assert result.clean == result.robust == 90 and result.num_images == 10 and result.after == {}


def test_a_json_has_all_but_the_tensors(net, images, labels):
    result = fastarat.evaluate(net, images, labels, "apgd-ce,square", eps=EPS)
    values = json.loads(json.dumps(result.to_json()))
    assert values["counts"] == result.counts and values["robust"] == result.robust and values["complete"]
    low, high = values["interval_95"]
    assert low <= result.robust <= high
    classes = result.accuracy("square")
    assert sum(classes.total) == 20 and sum(classes.correct) == result.counts["square"]


def test_a_budget_ends_it_between_batches_and_the_state_goes_on(net, images, labels, tmp_path):
    settings = {"eps": EPS, "batch": 5, "state": tmp_path / "state"}
    first = fastarat.evaluate(net, images, labels, "apgd-ce,square", budget=1e-9, **settings)
    assert not first.complete and first.stopped == "apgd-ce has done 1 of 4 batches" and len(first.flags) == 2
    assert first.warnings[-1] == f"The budget ended it ({first.stopped}), so robust accuracy may be too high."
    sessions = 1
    while not (result := fastarat.evaluate(net, images, labels, "apgd-ce,square", budget=1e-9, **settings)).complete:
        sessions += 1
        assert sessions < 20
    whole = fastarat.evaluate(net, images, labels, "apgd-ce,square", eps=EPS, batch=5)
    assert not any("budget" in said for said in result.warnings)
    assert sessions > 3 and result.counts == whole.counts and torch.equal(result.x_adv, whole.x_adv)


def test_two_evaluations_do_not_share_a_state(net, images, labels, tmp_path):
    def second(amount: float) -> None:
        with pytest.raises(UserError, match="another evaluation is at work in"):
            fastarat.evaluate(net, images, labels, "apgd-ce", eps=EPS, state=tmp_path)
        told.append(amount)

    told: list[float] = []
    fastarat.evaluate(net, images, labels, "apgd-ce", eps=EPS, state=tmp_path, advance=second)
    assert told
    assert fastarat.evaluate(net, images, labels, "apgd-ce", eps=EPS, state=tmp_path).complete


def test_without_a_radius_it_is_the_usual_one_and_in_l2_there_is_none(net, images, labels):
    assert fastarat.evaluate(net, images, labels, "pgd", steps=1).eps == EvaluationSettings(norm="linf").eps == 8 / 255
    with pytest.raises(UserError, match="eps is not given, and l2 has no usual radius: give one"):
        fastarat.evaluate(net, images, labels, "pgd", norm="l2")


def test_departures_from_the_standard_are_named(net, images, labels, monkeypatch):
    result = fastarat.evaluate(net, images, labels, "apgd-t,fab-t", eps=EPS, targets=3)
    assert result.options == ("3 targets instead of 9",)
    assert departures(EvaluationSettings("pgd", targets=3), torch.device("cpu")) == ()
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    on_gpu = departures(EvaluationSettings("apgd-ce"), torch.device("cuda"))
    assert on_gpu == ("gradient attacks with TF32 convolutions, what they find confirmed in fp32",)


def test_finds_with_tf32_convolutions_are_confirmed_without_them(net, images, labels, monkeypatch):
    class Net(nn.Module):
        """Other labels wherever convolutions are TF32, so that whatever is found there is refused."""

        def forward(self, x):
            rounds = torch.backends.cudnn.conv.fp32_precision == "tf32"
            assert torch.backends.cudnn.allow_tf32 == rounds and torch.get_float32_matmul_precision() == "highest"
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=rounds):  # reads the older names, too
                pass
            seen.append(rounds)
            return -net(x) if rounds else net(x)

    seen: list[bool] = []
    flags = torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision
    plain = fastarat.evaluate(net, images, labels, "pgd", eps=EPS)
    module = importlib.import_module("fastarat.evaluation.evaluate")
    monkeypatch.setattr(module, "rounded_to_tf32", lambda device: "convolutions")
    confirmed = fastarat.evaluate(Net().eval(), images, labels, "pgd", eps=EPS)
    assert True in seen and False in seen and confirmed.robust == plain.robust
    assert flags == (torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision)
    assert torch.backends.cudnn.allow_tf32, "the older name can be read again"


def test_tf32_is_named_where_a_program_asked_for_it_by_the_newer_names():
    convolutions, products = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    before = convolutions.fp32_precision, products.fp32_precision
    convolutions.fp32_precision, products.fp32_precision = "ieee", "tf32"
    try:
        (found,) = departures(EvaluationSettings("apgd-ce"), torch.device("cuda"))
        assert found == "gradient attacks with TF32 matrix products, what they find confirmed in fp32"
    finally:
        convolutions.fp32_precision, products.fp32_precision = before


def test_numbers_of_numpys_are_numbers(net, images, labels):
    options = {"steps": np.int64(3), "eps": np.float64(EPS), "batch": np.int32(4), "num_images": np.int64(4)}
    ours = fastarat.evaluate(net, images, labels, "pgd", steps=3, eps=EPS, batch=4, num_images=4)
    theirs = fastarat.evaluate(net, images, labels, "pgd", **options)
    assert torch.equal(ours.flags["pgd"], theirs.flags["pgd"]) and theirs.num_images == 4


def test_fewer_targets_reach_the_attacks(net, images, labels, monkeypatch):
    seen = []
    for name in ("apgd-t", "fab-t"):
        attack = attack_of(name)
        noted = lambda *args, attack=attack, **given: seen.append(args[-1].settings.targets) or attack(*args, **given)  # noqa: E731
        replace_attack(monkeypatch, name, noted)
    five = nn.Sequential(net, nn.Linear(10, 5)).eval()
    with torch.no_grad():
        y = five(images).argmax(1)
    result = fastarat.evaluate(five, images, y, "autoattack", eps=EPS, targets=4)
    assert set(seen) == {4} and result.complete


def test_settings_that_say_too_much_are_warned_of_in_the_result(net, images, labels):
    result = fastarat.evaluate(net, images, labels, "pgd", eps=8 / 255 / 255, steps=2, step=1e-5)
    told = result.to_json()["warnings"]
    assert [said.split("/255")[0] for said in told[:2]] == ["eps is 0.0313725", "The steps of pgd lead 0.0051"]
    assert not any("steps of" in said for said in fastarat.evaluate(net, images, labels, "apgd-ce", eps=EPS).warnings)


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        (lambda net, x: 3000 * net(x), "searches of apgd-ce began with a gradient of exactly zero"),
        (lambda net, x: net((x * 16).round() / 16), "Square, which needs no gradient, lowered robust accuracy"),
        (lambda net, x: net(x + 0.1 * torch.randn_like(x)), "The model is randomised"),
        (lambda net, x: net(x).softmax(1), "return probabilities"),
    ],
    ids=["logits x 3000", "16 levels", "noise", "softmax"],
)
def test_a_model_that_masks_its_gradient_is_warned_of(net, images, labels, mask, says):
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            return mask(self.net, x)

    result = fastarat.evaluate(Masked().eval(), images, labels, "apgd-ce,square", eps=0.06)
    assert any(says in warning for warning in result.warnings), result.warnings
