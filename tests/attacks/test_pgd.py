"""PGD stays in its ball, climbs, starts where its seed says, and leaves the model as it was."""

import copy

import pytest
import torch
import torch.nn.functional as F
from fastarat_kernels import philox
from fastarat_kernels.pgd_step.ball import norms
from torch import nn

from fastarat.attacks.pgd import perturb, start
from fastarat.common.errors import UserError
from fastarat.config.attack import AttackConfig
from fastarat.models.convert import convert_to_split_batch_norm
from fastarat.models.split_batch_norm import forward

Y = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])


def images(dtype=torch.float64, n: int = 8) -> torch.Tensor:
    return torch.rand(n, 1, 6, 6, dtype=dtype)


def loss(model: nn.Module, x: torch.Tensor) -> float:
    with torch.no_grad():
        return float(F.cross_entropy(forward(model, x, "adv", "eval"), Y[: len(x)]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("objective", ["cross-entropy", "kl", "margin"])
def test_adversarial_images_are_in_the_ball_and_in_range(small_net, norm, dtype, objective):
    settings = AttackConfig(norm=norm, eps_255=51, step_255=25, steps=3, objective=objective)
    x = images(dtype)
    x_adv = perturb(convert_to_split_batch_norm(small_net).to(dtype), x, Y, settings)
    length = norms(x_adv - x).max() if norm == "l2" else (x_adv - x).abs().max()
    assert x_adv.dtype == dtype and not x_adv.requires_grad
    assert x_adv.min() >= 0 and x_adv.max() <= 1
    # The bound is met up to a few roundings of pixels near 1.
    assert 0.01 < length <= 0.2 + 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_one_step_on_a_linear_model_is_the_one_worked_out_by_hand(norm):
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2).double())
    x = torch.full((2, 1, 2, 2), 0.5, dtype=torch.float64)
    settings = AttackConfig(norm=norm, eps_255=25.5, step_255=5.1, steps=1, start="none")
    # Of two classes, cross-entropy rises along the wrong class's weights minus the true one's.
    weight = model[1].weight.detach()
    rise = torch.stack([weight[1] - weight[0], weight[0] - weight[1]]).view(2, 1, 2, 2)
    direction = rise.sign() if norm == "linf" else rise / norms(rise)
    expected = x + 0.02 * direction
    # L2 divides by |g| + 1e-12, the gradient's norm being about 0.1.
    torch.testing.assert_close(perturb(model, x, Y[:2], settings), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("objective", ["cross-entropy", "kl", "margin"])
def test_pgd_raises_the_loss(small_net, norm, objective):
    x = images()
    settings = AttackConfig(
        norm=norm, eps_255=80, step_255=20, steps=10, start="uniform", batch_norm="eval", objective=objective
    )
    x_adv = perturb(small_net, x, Y, settings)
    if objective == "kl":
        before, after = small_net(x).log_softmax(1).detach(), small_net(x_adv).log_softmax(1).detach()
        assert F.kl_div(after, before, reduction="batchmean", log_target=True) > 1e-4
    else:
        assert loss(small_net, x_adv) > loss(small_net, x)


@pytest.mark.parametrize("batch_norm", ["train", "frozen", "eval"])
@pytest.mark.parametrize("converted", [True, False])
def test_the_model_is_left_as_it_was(small_net, converted, batch_norm):
    model = convert_to_split_batch_norm(small_net) if converted else small_net
    model.train()
    model.bn.eval()
    before = copy.deepcopy(model.state_dict())
    perturb(model, images(), Y, AttackConfig(steps=2, batch_norm=batch_norm))
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    moved = {"bn.running_mean", "bn.running_var"} | (set() if converted else {"bn.num_batches_tracked"})
    assert changed == (moved if batch_norm == "train" else set())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert model.training and not model.bn.training


def test_train_mode_moves_the_statistics_of_the_attacked_branch_alone(small_net):
    model = convert_to_split_batch_norm(small_net)
    before = model.bn.running_mean.clone()
    perturb(model, images(), Y, AttackConfig(steps=1, batch_norm="train"), branch="adv")
    assert torch.equal(model.bn.running_mean[0], before[0])
    assert (model.bn.running_mean[1] != before[1]).all()


def test_a_plain_module_is_attacked_as_the_same_net_converted(small_net):
    x, settings = images(), AttackConfig(steps=3, batch_norm="frozen")
    plain = perturb(small_net, x, Y, settings)
    split = perturb(convert_to_split_batch_norm(small_net), x, Y, settings)
    # The same arithmetic: only signs of gradients that are zero to rounding could differ.
    torch.testing.assert_close(plain, split, rtol=0, atol=1e-14)


def test_the_published_start_moves_the_centre_so_that_shifts_reach_two_eps(small_net):
    x = 0.3 + 0.4 * images()
    settings = AttackConfig(start="published-code", steps=10, batch_norm="eval")
    shift = (perturb(small_net, x, Y, settings) - x).abs().max()
    assert settings.eps < shift <= 2 * settings.eps + 1e-15
    first, centre = start(settings, x, torch.arange(8), 0, seed=0)
    plain, unmoved = start(AttackConfig(), x, torch.arange(8), 0, seed=0)
    assert torch.equal(centre, first) and torch.equal(first, plain) and torch.equal(unmoved, x)


def test_the_gaussian_start_is_normal_with_the_deviation_of_trades_whatever_the_norm_and_eps():
    x, rows = torch.zeros(50, 3, 20, 20), torch.arange(50)
    noise, _ = start(AttackConfig(start="gaussian"), x, rows, 2, seed=1)
    scaled, n = noise.double() / 0.001, noise.numel()
    # Five standard deviations of the mean, of the mean square, and of the share beyond two deviations (4.55 %).
    assert abs(scaled.mean()) < 5 / n**0.5
    assert abs(scaled.square().mean() - 1) < 5 * (2 / n) ** 0.5
    assert abs((scaled.abs() > 2).double().mean() - 0.0455) < 5 * (0.0455 * 0.9545 / n) ** 0.5
    other = AttackConfig(start="gaussian", norm="l2", eps_255=100)
    assert torch.equal(start(other, x, rows, 2, seed=1)[0], noise)
    assert torch.equal(start(AttackConfig(start="gaussian"), x[:7], rows[:7], torch.tensor(2), seed=1)[0], noise[:7])
    assert not (start(AttackConfig(start="gaussian"), x, rows, 3, seed=1)[0] == noise).any()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_uniform_start_scales_its_ball(norm):
    x, rows = torch.zeros(8, 1, 6, 6), torch.arange(8)
    one, two = (start(AttackConfig(norm=norm, eps_255=8, start_scale=s), x, rows, 5, seed=3)[0] for s in (1, 2))
    torch.testing.assert_close(two, 2 * one)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_without_projection_iterates_leave_the_ball_but_not_the_pixel_range(small_net, norm):
    x, eps = images(), 0.1
    common = {"norm": norm, "eps_255": 25.5, "step_255": 25.5, "steps": 3, "start_scale": 2, "batch_norm": "eval"}
    inside, free = (perturb(small_net, x, Y, AttackConfig(project=p, **common)) for p in (True, False))
    reach = [norms(v - x).max() if norm == "l2" else (v - x).abs().max() for v in (inside, free)]
    assert reach[0] <= eps + 1e-12 < 2 * eps < reach[1]
    assert free.min() >= 0 and free.max() <= 1


def test_n_fgsm_is_one_step_from_a_start_of_twice_the_ball_cut_to_the_pixel_range_alone(small_net):
    x, settings = images(), AttackConfig(steps=1, step_255=8, start_scale=2, project=False, batch_norm="eval")
    noisy = start(settings, x, torch.arange(8), 0, seed=4)[0].clamp(0, 1).requires_grad_()
    F.cross_entropy(small_net(noisy), Y).backward()
    expected = (noisy.detach() + 8 / 255 * noisy.grad.sign()).clamp(0, 1)
    torch.testing.assert_close(perturb(small_net, x, Y, settings, seed=4), expected, rtol=0, atol=1e-15)


def test_trades_attack_climbs_the_divergence_from_the_clean_prediction(small_net):
    x = images()
    settings = AttackConfig(eps_255=7.905, step_255=1.785, steps=2, start="gaussian", batch_norm="eval", objective="kl")
    noise = 0.001 * philox.normal(6, philox.Stream.ATTACK_START, 0, torch.arange(8), (1, 6, 6)).double()
    p = small_net(x).softmax(1).detach()
    expected = (x + noise).clamp(0, 1)
    for _ in range(2):
        expected = expected.requires_grad_()
        (p * (p.log() - small_net(expected).softmax(1).log())).sum().backward()
        stepped = expected.detach() + 0.007 * expected.grad.sign()
        expected = torch.clamp(torch.clamp(stepped, x - 0.031, x + 0.031), 0, 1)
    # The noise is a float32 product there, a float64 one here: 1e-10 of 0.001 standard deviations.
    torch.testing.assert_close(perturb(small_net, x, Y, settings, seed=6), expected, rtol=0, atol=1e-9)


def test_no_steps_and_no_start_are_no_attack(small_net):
    x = images()
    assert torch.equal(perturb(small_net, x, Y, AttackConfig(steps=0, start="none")), x)


@pytest.mark.parametrize("name", ["uniform", "none"])
def test_the_other_starts_keep_the_centre_on_the_image(name):
    x = images()
    first, centre = start(AttackConfig(start=name), x, torch.arange(8), 0, seed=0)
    assert torch.equal(centre, x)
    assert torch.equal(first, x) == (name == "none")


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_rows_start_is_the_same_however_the_batch_is_divided(norm):
    x, rows, settings = images(torch.float32), torch.arange(8), AttackConfig(norm=norm, eps_255=8)
    whole, _ = start(settings, x, rows, 5, seed=3)
    parts = [start(settings, x[i : i + 3], rows[i : i + 3], 5, seed=3)[0] for i in range(0, 8, 3)]
    assert torch.equal(torch.cat(parts), whole)
    channels_last = x.to(memory_format=torch.channels_last)
    assert torch.equal(start(settings, channels_last, rows, 5, seed=3)[0], whole)


def test_the_same_seed_gives_the_same_images_and_another_seed_others(small_net):
    x, settings = images(), AttackConfig(steps=1, batch_norm="eval")
    first = perturb(small_net, x, Y, settings, seed=1)
    assert torch.equal(perturb(small_net, x, Y, settings, seed=1), first)
    assert not torch.equal(perturb(small_net, x, Y, settings, seed=2), first)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"steps": 0}, "steps is 0: give 1 or more, or 0 with start none"),
        ({"start": "gaussian", "start_scale": 2.0}, "start_scale is the uniform start's"),
        ({"start": "published-code", "project": False}, "published-code moves the ball"),
        ({"start_scale": float("nan")}, "start_scale is nan"),
        ({"eps_255": -1.0}, "eps_255 is -1.0"),
        ({"step_255": float("nan")}, "step_255 is nan"),
        ({"name": "pgdd"}, "did you mean 'pgd'"),
    ],
)
def test_bad_settings_are_refused_with_the_fix(small_net, settings, problem):
    with pytest.raises(UserError, match=problem):
        perturb(small_net, images(), Y, AttackConfig(**settings))


@pytest.mark.parametrize("value", [-0.01, 1.01, float("nan")])
def test_pixels_outside_the_range_are_refused(small_net, value):
    x = images()
    x[3, 0, 2, 2] = value
    with pytest.raises(UserError, match=r"images must lie in \[0, 1\]"):
        perturb(small_net, x, Y, AttackConfig())


def test_a_confidently_classified_image_is_attacked_in_half_precision_too():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        # A lead of 18.4 leaves the wrong class 1e-8, less than float16's smallest number.
        model[1].weight.copy_(torch.tensor([[1.0], [-1.0]]).expand(2, 4))
        model[1].bias.copy_(torch.tensor([7.2, -7.2]))
    x, settings = torch.full((1, 1, 2, 2), 0.5), AttackConfig(start="none", steps=1, batch_norm="eval")
    with torch.autocast("cpu", torch.float16):
        x_adv = perturb(model, x, torch.tensor([0]), settings)
    assert (x_adv < x).all()
