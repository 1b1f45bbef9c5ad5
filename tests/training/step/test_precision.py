"""Number formats: which dtype a forward has, and the loss scaling of fp16."""

import pytest
import torch
from torch import nn

from fastarat.attacks import pgd
from fastarat.config.attack import AttackConfig
from fastarat.training.step.precision import Precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "parameters", "outputs"),
    [
        ("fp64", torch.float64, torch.float64),
        ("fp32", torch.float32, torch.float32),
        ("bf16", torch.float32, torch.bfloat16),
        ("fp16", torch.float32, torch.float16),
    ],
)
def test_convolutions_compute_in_the_format_and_weights_stay_wide(name, parameters, outputs):
    precision = Precision(name, CPU)
    assert precision.parameter_dtype == parameters
    convolution = nn.Conv2d(1, 2, 3).to(precision.parameter_dtype)
    with precision.autocast():
        out = convolution(torch.rand(1, 1, 4, 4, dtype=precision.parameter_dtype))
    assert out.dtype == outputs and convolution.weight.dtype == parameters


@pytest.mark.parametrize("name", ["fp64", "fp32", "bf16"])
def test_only_fp16_scales_the_loss(name):
    precision, loss, gradients = Precision(name, CPU), torch.tensor(2.0), [torch.ones(2)]
    assert precision.scaled(loss) is loss
    unscaled, keep = precision.unscale(gradients)
    assert unscaled[0] is gradients[0] and keep is None


def test_fp16_gradients_come_back_at_their_true_size():
    precision = Precision("fp16", CPU)
    weight = torch.tensor([1.5, -2.0], requires_grad=True)
    scaled = torch.autograd.grad(precision.scaled((weight**2).sum()), weight)
    assert scaled[0].tolist() == [3.0 * 2**16, -4.0 * 2**16]
    gradients, keep = precision.unscale(list(scaled))
    assert gradients[0].tolist() == [3.0, -4.0] and float(keep) == 1


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
def test_an_overflow_halves_the_scale_and_drops_the_step(bad):
    precision = Precision("fp16", CPU)
    precision.good_steps.fill_(1500)
    gradients, keep = precision.unscale([torch.ones(2), torch.tensor([bad, 1.0])])
    assert float(keep) == 0 and all(gradient.isfinite().all() for gradient in gradients)
    assert float(precision.scale) == 2**15 and int(precision.good_steps) == 0


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_an_attack_s_overflow_moves_by_its_sign_and_halves_its_factor_until_there_is_none(norm):
    """The gradient is 100 times the factor, and 65,504 is the most that fp16 holds."""
    factor, x = Precision("fp16", CPU).attack_factor, torch.ones(2, 1, 1, 2)

    def logits_of(images: torch.Tensor) -> torch.Tensor:
        return torch.stack([images[..., 0].flatten().half() * 100, images[..., 1].flatten().half() * 0.01], 1)

    settings = AttackConfig(norm=norm, eps_255=8, objective="margin")
    found = []
    for _ in range(3):
        context = pgd.GradientContext(factor=factor)
        moved, _ = pgd.ascend(settings, logits_of, x, torch.zeros(2).long(), pgd.Ball(x * 0.5, 9, 0.1), None, context)
        assert moved.isfinite().all()
        found.append((float(factor), bool((moved[..., 0] < 1).all())))
    assert found == [(512, True)] * 3


@pytest.mark.parametrize("name", ["fp64", "fp32", "bf16"])
def test_other_formats_have_no_factor_on_an_attack(name):
    assert Precision(name, CPU).attack_factor is None


@pytest.mark.parametrize(
    ("factors", "agreed"),
    [
        ([1024.0, 1024.0], 1024),
        ([1024.0, 512.0], 512),
        ([1024.0] * 7 + [256.0], 512),
        ([2.0, 1.0, 1.0], 1),
        ([1023.9], 1024),
    ],
)
def test_processes_agree_on_a_factor_that_is_a_power_of_two_and_lower_than_the_largest(factors, agreed):
    precision = Precision("fp16", CPU)
    precision.agree(torch.tensor(factors).mean())
    assert float(precision.attack_factor) == agreed


def test_two_thousand_good_steps_double_the_scale():
    precision = Precision("fp16", CPU)
    gradients = [torch.ones(1)]
    for _ in range(1999):
        precision.unscale(gradients)
    assert float(precision.scale) == 2**16
    precision.unscale(gradients)
    assert float(precision.scale) == 2**17 and int(precision.good_steps) == 0


def test_the_scale_goes_on_from_a_checkpoint():
    saved, resumed = Precision("fp16", CPU), Precision("fp16", CPU)
    saved.unscale([torch.tensor([float("inf")])])
    saved.unscale([torch.ones(1)])
    saved.attack_factor.fill_(256)
    resumed.load_state_dict(saved.state_dict())
    assert float(resumed.scale) == 2**15 and int(resumed.good_steps) == 1 and float(resumed.attack_factor) == 256


@pytest.mark.parametrize(
    ("before", "now", "scale"), [("fp32", "fp16", 2**16), ("bf16", "fp16", 2**16), ("fp16", "fp32", 1)]
)
def test_a_run_that_goes_on_in_another_format_has_that_formats_first_scale(before, now, scale):
    saved, resumed = Precision(before, CPU), Precision(now, CPU)
    saved.scale.mul_(0.5)
    resumed.load_state_dict(saved.state_dict())
    assert float(resumed.scale) == scale
    assert resumed.attack_factor is None or float(resumed.attack_factor) == pgd.FP16_FACTOR
