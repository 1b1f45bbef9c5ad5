"""Clean and robust accuracy on models whose robust set is known exactly."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastarat.attacks.settings import AttackConfig
from fastarat.data.dataset import ImageSet
from fastarat.evaluation import Accuracy, evaluate, survives
from fastarat.models.convert import convert_to_split_batch_norm

ATTACK = AttackConfig(eps_255=10, step_255=4, steps=5)


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
IMAGES = ImageSet(grey(100, 120, 155, 135, 116, 139, 90, 170), np.array([0, 0, 1, 1, 0, 1, 1, 0]))


def measured(model: nn.Module, attack: AttackConfig = ATTACK, **options) -> tuple[Accuracy, Accuracy]:
    return evaluate(model, IMAGES, 255, 2, attack, **options)


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
    x, y, rows = torch.full((1, 1, 2, 2), 0.5), torch.zeros(1, dtype=torch.int64), torch.arange(1)
    model = Band()
    assert model(x + 0.02).argmax() == 1 and model(x + 0.04).argmax() == 0
    assert not survives(model, x, y, torch.tensor([True]), attack, 1, 0, rows)


def test_only_what_is_right_and_unbroken_is_attacked():
    asked = []

    def logits_of(v: Tensor) -> Tensor:
        asked.append(len(v))
        return torch.stack([v.mean((1, 2, 3)), 0.5 + 0 * v.mean((1, 2, 3))], dim=1)

    x = torch.tensor([0.9, 0.9, 0.1]).view(3, 1, 1, 1)
    correct = torch.tensor([True, True, False])
    kept = survives(logits_of, x, torch.zeros(3, dtype=torch.int64), correct, ATTACK, 2, 0, torch.arange(3))
    assert kept.tolist() == [True, True, False] and set(asked) == {2}


def test_restarts_only_lower_the_accuracy(small_net):
    images = ImageSet(np.random.default_rng(0).integers(0, 256, (48, 6, 6, 1), dtype=np.uint8), np.zeros(48, np.int64))
    with torch.no_grad():
        small_net.linear.bias[0] += 1
    attack = AttackConfig(eps_255=30, step_255=1, steps=1)
    results = [
        evaluate(small_net, images, 255, 3, attack, restarts=n, dtype=torch.float64)[1].correct[0] for n in (1, 2, 8)
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
    images = ImageSet(pixels, labels)
    results = [evaluate(small_net, images, 255, 3, attack, batch=n, dtype=torch.float64) for n in (7, 20, 60)]
    assert results[0] == results[1] == results[2]
    assert 0 < sum(results[0][1].correct) < 60


@pytest.mark.parametrize("training", [True, False])
def test_the_model_keeps_its_mode_and_statistics(small_net, training):
    images = ImageSet(grey(10, 200), np.array([0, 1]))
    for model in (small_net, convert_to_split_batch_norm(small_net)):
        model.train(training)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        evaluate(model, images, 255, 3, AttackConfig(batch_norm="train"), dtype=torch.float64)
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
    images = ImageSet(grey(10, 100, 200), np.array([2, 2, 0]))
    for branch, correct in (("adv", 2), ("clean", 1)):
        clean, _ = evaluate(model, images, 255, 3, AttackConfig(steps=1), branch=branch, dtype=torch.float64)
        assert sum(clean.correct) == correct


def test_progress_is_told_of_every_image():
    told = []
    measured(Threshold(), batch=3, advance=told.append)
    assert told == [3, 3, 2]


def test_a_model_without_parameters_can_be_measured():
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            mean = x.mean((1, 2, 3))
            return torch.stack([0.5 - mean, mean - 0.5], dim=1)

    assert measured(Fixed())[0].correct == (3, 3)
