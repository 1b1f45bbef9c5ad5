"""Clean and robust accuracy on models whose robust set is known exactly."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastarat.common.distributed import World
from fastarat.common.errors import UserError
from fastarat.config.attack import AttackConfig
from fastarat.data.images.dataset import Images
from fastarat.evaluation.accuracies import Accuracy, AccuracySettings, accuracies
from fastarat.evaluation.verdicts import DeviceImages, on_clean, under_attack
from fastarat.models.convert import convert_to_split_batch_norm
from tests.helpers.host_syncs import HostSync, NoHostSync

ATTACK = AttackConfig(eps_255=10, step_255=4, steps=5)
FLOAT64 = AccuracySettings(dtype=torch.float64)


class Threshold(nn.Module):
    """Class 1 where the mean pixel exceeds a half: an attack of eps wins where the mean is within eps of it."""

    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor([-20.0, 20.0]))

    def forward(self, x: Tensor) -> Tensor:
        return (x.mean((1, 2, 3), keepdim=True).flatten(1) - 0.5) * self.slope


def grey(*values: int) -> np.ndarray:
    """Uniform images 4x4 of these grey values of 255."""
    return np.stack([np.full((4, 4, 1), value, np.uint8) for value in values])


# Distances from 127.5, by value: 100 and 155 are safe from eps 10, 120 and 135 are not; the last two are wrong.
IMAGES = Images(grey(100, 120, 155, 135, 116, 139, 90, 170), np.array([0, 0, 1, 1, 0, 1, 1, 0]))


def measured(model: nn.Module, attack: AttackConfig = ATTACK, **options) -> tuple[Accuracy, Accuracy]:
    """The clean and the robust accuracy of a model of two classes on all images."""
    means = {name: options.pop(name) for name in ("world", "advance") if name in options}
    return accuracies(model, IMAGES, 255, 2, attack, AccuracySettings(**options), **means)


@pytest.mark.parametrize("batch", [3, 500])
@pytest.mark.parametrize("objective", ["cross-entropy", "margin"])
@pytest.mark.parametrize("start", ["uniform", "none"])
def test_the_counts_are_those_known_in_advance(batch, objective, start):
    attack = AttackConfig(eps_255=10, step_255=4, steps=5, objective=objective, start=start)
    clean, robust = measured(Threshold(), attack, batch=batch)
    assert (clean.correct, clean.total) == ((3, 3), (4, 4))
    assert (robust.correct, robust.total) == ((2, 2), (4, 4))


def test_the_l2_ball_is_measured_by_the_norm_of_the_image():
    # Sixteen pixels moved by d have the norm 4 d: an L2 radius of 40 is a shift of 10.
    attack = AttackConfig(norm="l2", eps_255=40, step_255=16, steps=20)
    assert measured(Threshold(), attack)[1].correct == (2, 2)
    wider = AttackConfig(norm="l2", eps_255=48, step_255=16, steps=20)
    assert measured(Threshold(), wider)[1].correct == (1, 1)


def test_without_restarts_robust_is_clean():
    clean, robust = measured(Threshold(), restarts=0)
    assert robust == clean


class Veiled(Threshold):
    """The same, without a slope to follow."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.detach() + 0 * x)


class Rooted(Threshold):
    """The same, but NaN for images brighter than six tenths."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0 * (0.6 - x.mean((1, 2, 3))).sqrt()[:, None]


def test_right_images_that_the_attack_could_not_search_are_counted():
    clean, robust = measured(Veiled(), restarts=2)
    assert robust.correct == clean.correct == (3, 3) and robust.not_attackable == 6
    assert measured(Threshold())[1].not_attackable == clean.not_attackable == 0


class Third(Threshold):
    """The same with a third class, which never wins, and logits that span no more than `span`, at brightness 0 or 1."""

    def __init__(self, span: float):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor([-span, span, 0.0]))


@pytest.mark.parametrize(("span", "small"), [(1.0, 6), (1000.0, 0)])
def test_right_images_whose_logits_are_small_are_counted(span, small):
    clean, robust = accuracies(Third(span), IMAGES, 255, 3, ATTACK)
    assert sum(clean.correct) == 6 and (clean.small_logits, robust.small_logits) == (small, 0)
    assert measured(Threshold())[0].small_logits == 0  # of two classes there is one wrong one


def test_logits_that_are_nan_are_wrong_and_counted():
    clean, robust = measured(Rooted())
    assert clean.correct == (3, 2) and clean.undefined == 2
    assert robust.correct == (2, 1) and robust.undefined == 0
    # In a ball of 45 around them, all but the images darker than 0.6 - 45/255 reach the brightness of NaN.
    assert measured(Rooted(), AttackConfig(eps_255=45, step_255=45, steps=1, start="none"))[1].undefined > 0


def test_percent_and_classes():
    accuracy = Accuracy((3, 0, 0), (4, 4, 0))
    assert accuracy.percent == 37.5
    assert accuracy.per_class == [75.0, 0.0, None]


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    # R: binom::binom.wilson(k, n), to four digits.
    [(8, 10, 49.02, 94.33), (0, 10, 0.0, 27.75), (10, 10, 72.25, 100.0), (50, 100, 40.38, 59.62)],
)
def test_the_interval_is_wilsons(correct, total, low, high):
    assert Accuracy((correct,), (total,)).interval == pytest.approx((low, high), abs=0.006)


def on_device(pixels: list[int], max_value: int) -> DeviceImages:
    """Images of one pixel, all of class 0."""
    shape = (len(pixels), 1, 1, 1)
    images = torch.tensor(pixels, dtype=torch.uint8).view(shape)
    rows = torch.arange(len(pixels))
    return DeviceImages(images, torch.zeros_like(rows), rows, max_value, torch.float32)


class Band(nn.Module):
    """Class 0 but for a narrow band of brightness, through which an attack passes on its way up."""

    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(10.0))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((1, 2, 3))
        inside = (mean > 0.51) & (mean < 0.53)
        return torch.stack([-self.slope * mean + 20, self.slope * mean + 40 * inside], dim=1)


@pytest.mark.parametrize("steps", [1, 2, 3, 6])
def test_an_image_broken_at_any_iterate_is_not_robust(steps):
    # From a half, steps of 0.02 visit 0.52 (broken), then 0.54 … (right again).
    attack = AttackConfig(eps_255=51, step_255=5.1, steps=steps, start="none")
    x, model = torch.full((1, 1, 1, 1), 0.5), Band()
    assert model(x + 0.02).argmax() == 1 and model(x + 0.04).argmax() == 0
    assert not under_attack(model, on_device([1], 2), torch.tensor([True]), attack, 1, 0, batch=1).right


def right_above_a_half(asked: list[int]):
    """Logits by which class 0 has the images brighter than a half; notes how many images it is asked about."""

    def logits_of(v: Tensor) -> Tensor:
        asked.append(len(v))
        return torch.stack([v.mean((1, 2, 3)), 0.5 + 0 * v.mean((1, 2, 3))], dim=1)

    return logits_of


def test_only_what_is_right_and_unbroken_is_attacked():
    asked, correct = [], torch.tensor([True, True, False])
    kept = under_attack(right_above_a_half(asked), on_device([9, 9, 1], 10), correct, ATTACK, 2, 0, batch=3).right
    assert kept.tolist() == [True, True, False] and set(asked) == {2}


def test_a_restart_attacks_what_the_one_before_left_over_in_full_batches():
    # Of steps of 0 the start alone decides. Image by image: safe, or broken by one start in two.
    asked, attack = [], AttackConfig(eps_255=25.5, step_255=0, steps=1)
    images, correct = on_device([90, 51, 90, 51, 51, 90, 51, 51], 100), torch.ones(8, dtype=torch.bool)
    kept = under_attack(right_above_a_half(asked), images, correct, attack, 1, 0, batch=4).right
    assert asked == [4, 4, 4, 4] and 3 < kept.sum() < 8
    asked.clear()
    under_attack(right_above_a_half(asked), images, correct, attack, 2, 0, batch=4)
    second = asked[4::2]  # each batch is asked about twice: for the step, and at its end
    assert sum(second) == kept.sum() and set(second[:-1]) <= {4}


def test_the_host_waits_for_the_device_once_a_restart_however_many_batches_there_are():
    attack = AttackConfig(eps_255=25.5, step_255=30, steps=2)
    images, logits_of = on_device([90, 55] * 8, 100), right_above_a_half([])

    def attacked(restarts: int) -> Tensor:
        return under_attack(logits_of, images, torch.ones(16, dtype=torch.bool), attack, restarts, 0, batch=4).right

    with NoHostSync():
        right = on_clean(logits_of, images, batch=4).right
    with NoHostSync(allowed=2):
        kept = attacked(restarts=2)
    assert right.all() and kept.tolist() == [True, False] * 8
    with pytest.raises(HostSync), NoHostSync(allowed=1):
        attacked(restarts=2)


def test_where_new_shapes_cost_time_every_batch_has_the_same_one_and_the_verdicts_stay(monkeypatch):
    asked, attack = [], AttackConfig(eps_255=25.5, step_255=0, steps=1)
    images, correct = on_device([90, 51, 90, 51, 10, 90, 51], 100), torch.tensor([True] * 4 + [False] + [True] * 2)
    plain = under_attack(right_above_a_half([]), images, correct, attack, 2, 0, batch=4).right
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    filled = under_attack(right_above_a_half(asked), images, correct, attack, 2, 0, batch=4).right
    assert set(asked) == {4} and filled.tolist() == plain.tolist() and 0 < filled.sum() < correct.sum()


def test_more_images_can_be_measured_clean_than_are_attacked():
    clean, robust = measured(Threshold(), num_attacked=3)
    assert (clean.correct, clean.total) == ((3, 3), (4, 4))
    assert (robust.correct, robust.total) == ((1, 1), (2, 1))
    for all_of_them in (None, 8, 100):
        assert measured(Threshold(), num_attacked=all_of_them) == measured(Threshold())


def test_the_attacked_images_are_attacked_as_if_they_were_alone(small_net):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 6, 6, 1), dtype=np.uint8)
    labels = np.random.default_rng(1).integers(0, 3, 60)
    attack = AttackConfig(eps_255=40, step_255=0, steps=1)  # the starts decide: they belong to the image

    def robust(num: int, **options) -> Accuracy:
        images = Images(pixels[:num], labels[:num])
        return accuracies(small_net, images, 255, 3, attack, replace(FLOAT64, **options))[1]

    assert robust(60, num_attacked=20) == robust(20)
    assert 0 < sum(robust(20).correct) < 20


@pytest.mark.parametrize("num_attacked", [2, 5, None])
@pytest.mark.parametrize("size", [2, 3, 9])
def test_processes_share_attacked_and_other_images_evenly(monkeypatch, num_attacked, size):
    counts = []
    monkeypatch.setattr(
        "fastarat.evaluation.accuracies.sum_over_processes", lambda values, world: counts.append(values) or values
    )
    whole = measured(Threshold(), num_attacked=num_attacked)
    counts.clear()
    for rank in range(size):
        measured(Threshold(), num_attacked=num_attacked, world=World(torch.device("cpu"), rank, size))
    totals = [tuple(row) for row in sum(counts).tolist()]
    assert [totals[row] for row in (1, 0, 6, 5)] == [whole[0].total, whole[0].correct, whole[1].total, whole[1].correct]
    shares = [int(row[6].sum()) for row in counts]
    assert max(shares) - min(shares) <= 1


def test_attacking_no_image_is_refused():
    with pytest.raises(UserError, match="num_attacked is 0: give 1 or more"):
        measured(Threshold(), num_attacked=0)


@pytest.mark.parametrize("label", [0, 1, 2])
def test_weights_given_stand_in_for_the_models_own(small_net, label):
    model, attack = convert_to_split_batch_norm(small_net), AttackConfig(steps=1)
    images = Images(grey(10, 100, 200), np.full(3, label))
    own = {name: p.detach() for name, p in model.named_parameters()}
    for chosen, percent in ((label, 100), ((label + 1) % 3, 0)):
        weights = own | {"linear.bias": 1e6 * torch.eye(3, dtype=torch.float64)[chosen]}
        clean, robust = accuracies(model, images, 255, 3, attack, replace(FLOAT64, weights=weights))
        assert clean.percent == robust.percent == percent


def test_restarts_only_lower_the_accuracy(small_net):
    images = Images(np.random.default_rng(0).integers(0, 256, (48, 6, 6, 1), dtype=np.uint8), np.zeros(48, np.int64))
    with torch.no_grad():
        small_net.linear.bias[0] += 1
    attack = AttackConfig(eps_255=30, step_255=1, steps=1)
    results = [
        accuracies(small_net, images, 255, 3, attack, replace(FLOAT64, restarts=n))[1].correct[0] for n in (1, 2, 8)
    ]
    assert results == sorted(results, reverse=True)


def test_results_do_not_depend_on_the_batch_size(small_net):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 6, 6, 1), dtype=np.uint8)
    x = torch.from_numpy(pixels).double().permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        small_net.linear.bias -= small_net(x).mean(0)  # every class has its share, and images near its border
        labels = small_net(x).argmax(1).numpy()
    # A step size of 0 leaves the random starts: they must belong to the image, not to its place in a batch.
    attack = AttackConfig(eps_255=80, step_255=0, steps=1)
    images = Images(pixels, labels)
    results = [accuracies(small_net, images, 255, 3, attack, replace(FLOAT64, batch=n)) for n in (7, 20, 60)]
    assert results[0] == results[1] == results[2]
    assert 0 < sum(results[0][1].correct) < 60


@pytest.mark.parametrize("training", [True, False])
def test_the_model_keeps_its_mode_and_statistics(small_net, training):
    images = Images(grey(10, 200), np.array([0, 1]))
    for model in (small_net, convert_to_split_batch_norm(small_net)):
        model.train(training)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        accuracies(model, images, 255, 3, AttackConfig(batch_norm="train"), FLOAT64)
        assert model.training == training and model.bn.training == training
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_branch_asked_for_is_measured(small_net):
    with torch.no_grad():
        small_net.linear.bias.copy_(torch.tensor([0.0, 0.0, 1.0]))
    model = convert_to_split_batch_norm(small_net)
    with torch.no_grad():
        # Features of zero: the adversarial branch always says class 2.
        model.bn.weight[1], model.bn.bias[1] = 0, 0
        # Features far from zero: the clean branch always says class 0.
        model.bn.bias[0] = 100
        model.linear.weight[0], model.linear.weight[2] = 1, 0
        model.linear.weight[1] = -1
    images = Images(grey(10, 100, 200), np.array([2, 2, 0]))
    for branch, correct in (("adv", 2), ("clean", 1)):
        clean, _ = accuracies(model, images, 255, 3, AttackConfig(steps=1), replace(FLOAT64, branch=branch))
        assert sum(clean.correct) == correct


@pytest.mark.parametrize("options", [{}, {"restarts": 0}, {"restarts": 3}, {"num_attacked": 3}], ids=str)
def test_progress_is_told_of_as_many_images_as_there_are_by_the_work_that_they_take(options):
    told = []
    measured(Threshold(), batch=3, advance=told.append, **options)
    assert sum(told) == pytest.approx(8) and min(told) >= 0
    clean_share = 8 / (1 + 10 * options.get("restarts", 1) * options.get("num_attacked", 8) / 8)
    assert sum(told[:3]) == pytest.approx(clean_share)


def test_a_model_without_parameters_can_be_measured():
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            mean = x.mean((1, 2, 3))
            return torch.stack([0.5 - mean, mean - 0.5], dim=1)

    assert measured(Fixed())[0].correct == (3, 3)
