"""Weight averages against plain means, and the statistics of an averaged net against means over batches."""

import copy
from dataclasses import replace

import pytest
import torch
from fastarat_kernels.implementations import PYTORCH, TRITON
from torch import nn

from fastarat.attacks.pgd import pgd, start
from fastarat.config.attack import AttackConfig
from fastarat.config.training import AveragingConfig
from fastarat.data.loading.loader import Batch
from fastarat.models.convert import convert_to_split_batch_norm
from fastarat.models.split_batch_norm import forward, forward_context
from fastarat.training.averaging import Average, reestimate
from fastarat.training.step.precision import Precision

# float64: means of a few numbers.
CLOSE = {"rtol": 1e-12, "atol": 1e-13}
FP64 = Precision("fp64", torch.device("cpu"))
NO_SHIFT = AttackConfig(eps_255=0, steps=2)
BOTH = ("clean", "adv")


def train(net: nn.Module) -> dict[str, torch.Tensor]:
    """Move every tensor of the net, as a step would; returns a copy of them."""
    with torch.no_grad():
        for tensor in net.state_dict().values():
            tensor.add_(torch.rand_like(tensor))
    return copy.deepcopy(net.state_dict())


def assert_tensors(net: nn.Module, expected: dict[str, torch.Tensor]) -> None:
    for name, tensor in net.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], **CLOSE, msg=name)


def test_an_average_computes_by_pytorch_whatever_its_net_does(small_net):
    net = convert_to_split_batch_norm(small_net)
    forward_context(net).kernels = TRITON
    average = Average(AveragingConfig(kind="swa"), net)
    assert forward_context(average.model).kernels is PYTORCH and forward_context(net).kernels is TRITON


def test_what_is_no_number_of_the_weights_is_the_nets_own_in_an_average(small_net):
    """As the index of a Swin net's relative positions, or a count of batches."""
    net = convert_to_split_batch_norm(small_net)
    net.register_buffer("index", torch.arange(4))
    net.register_buffer("is_used", torch.tensor([True, False]))
    average = Average(AveragingConfig("ema", decay=0.5, start_epoch=1), net)
    for step in (1, 2):
        net.index += 3
        net.is_used.logical_not_()
        net.conv.weight.data.fill_(step)
        average.update(step, 1)
    assert average.model.index.tolist() == [6, 7, 8, 9] and average.model.is_used.tolist() == [True, False]
    assert (average.model.conv.weight == 1.5).all()


def test_swa_is_the_equal_mean_of_snapshots_from_its_first_epoch_on(small_net):
    net = convert_to_split_batch_norm(small_net)
    average = Average(AveragingConfig("swa", start_epoch=3, every_steps=2), net)
    taken = []
    for step in range(1, 13):
        epoch = (step - 1) // 3 + 1
        now = train(net)
        average.update(step, epoch)
        if epoch >= 3 and step % 2 == 0:
            taken.append(now)
    assert average.num_snapshots == len(taken) == 3
    assert_tensors(average.model, {name: sum(t[name] for t in taken) / 3 for name in taken[0]})


def test_ema_starts_at_the_first_weights_and_forgets_by_its_decay(small_net):
    net = convert_to_split_batch_norm(small_net)
    average = Average(AveragingConfig("ema", decay=0.8, start_epoch=2), net)
    train(net)
    average.update(1, 1)
    assert average.num_snapshots == 0
    expected = train(net)
    average.update(2, 2)
    for step in (3, 4):
        now = train(net)
        average.update(step, 2)
        expected = {name: 0.8 * expected[name] + 0.2 * now[name] for name in now}
    assert_tensors(average.model, expected)


def test_the_trained_net_is_left_alone_and_keeps_a_pass_of_its_own(small_net):
    net = convert_to_split_batch_norm(small_net)
    average = Average(AveragingConfig("ema", start_epoch=1), net)
    now = train(net)
    average.update(1, 1)
    average.update(2, 1)
    assert_tensors(net, now)
    assert forward_context(average.model) is average.model.bn.context is not forward_context(net)


def test_an_average_goes_on_from_a_checkpoint(small_net):
    net = convert_to_split_batch_norm(small_net)
    settings = AveragingConfig("swa", start_epoch=1, every_steps=1)
    average = Average(settings, net)
    train(net)
    average.update(1, 1)
    resumed = Average(settings, net)
    resumed.load_state_dict(copy.deepcopy(average.state_dict()))
    train(net)
    for each in (average, resumed):
        each.update(2, 1)
    assert resumed.num_snapshots == 2
    assert_tensors(resumed.model, average.model.state_dict())


def test_an_average_follows_weights_that_a_checkpoint_brought_and_stays_in_its_place(small_net):
    net = convert_to_split_batch_norm(small_net)
    average = Average(AveragingConfig("ema", decay=0.8, start_epoch=1), net)
    places = [tensor.data_ptr() for tensor in average.model.state_dict().values()]
    loaded = {name: torch.rand_like(tensor) for name, tensor in net.state_dict().items()}
    saved = {name: torch.rand_like(tensor) for name, tensor in net.state_dict().items()}
    net.load_state_dict(loaded)
    average.load_state_dict({"model": saved, "num_snapshots": 3})
    average.update(4, 1)
    assert_tensors(average.model, {name: 0.8 * saved[name] + 0.2 * loaded[name] for name in loaded})
    assert [tensor.data_ptr() for tensor in average.model.state_dict().values()] == places


def batches() -> list[Batch]:
    """Three batches of very different means."""
    images = [torch.rand(4, 1, 5, 5, dtype=torch.float64) * (i + 1) / 3 for i in range(3)]
    return [Batch(x, torch.tensor([0, 1, 2, 0]), torch.arange(4)) for x in images]


def mean_statistics(net: nn.Module, inputs: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The plain mean over batches of the convolution's batch means and unbiased variances."""
    with torch.no_grad():
        outputs = [net.conv(x).transpose(0, 1).flatten(1) for x in inputs]
    means, variances = [out.mean(1) for out in outputs], [out.var(1) for out in outputs]
    return torch.stack(means).mean(0), torch.stack(variances).mean(0)


@pytest.mark.parametrize("kind", ["split", "shared"])
def test_statistics_are_estimated_anew_as_plain_means_over_batches(small_net, kind):
    net = convert_to_split_batch_norm(small_net, kind)
    seen = batches()
    reestimate(net, seen, NO_SHIFT, settings=AveragingConfig("swa"), precision=FP64, seed=0, halves=BOTH)
    mean, variance = mean_statistics(net, [batch.x for batch in seen])
    for branch in range(len(net.bn.running_mean)):
        torch.testing.assert_close(net.bn.running_mean[branch], mean, **CLOSE)
        torch.testing.assert_close(net.bn.running_var[branch], variance, **CLOSE)
    assert forward_context(net).momentum is None


@pytest.mark.parametrize("kind", ["shared", "mixed"])
@pytest.mark.parametrize("halves", [("clean", "adv"), ("adv", "clean"), ("adv",)])
@pytest.mark.parametrize("objective", ["cross-entropy", "kl"])
def test_one_set_of_statistics_sees_the_halves_that_training_feeds_it(small_net, kind, halves, objective):
    net = convert_to_split_batch_norm(small_net, kind)
    attack = AttackConfig(eps_255=40, step_255=20, steps=2, start="gaussian", objective=objective)
    seen, moved = batches(), []
    for i, batch in enumerate(seen):
        settings = replace(attack, batch_norm="frozen")
        moved.append(perturb_as_batch(net, batch, settings, i))
    reestimate(net, seen, attack, settings=AveragingConfig("swa"), precision=FP64, seed=3, halves=halves)
    images = {"clean": [batch.x for batch in seen], "adv": moved}
    if kind == "mixed" and len(halves) == 2:
        inputs = [torch.cat(pair) for pair in zip(images["clean"], images["adv"], strict=True)]
    else:
        inputs = [x for half in halves for x in images[half]]
    mean, variance = mean_statistics(net, inputs)
    torch.testing.assert_close(net.bn.running_mean[0], mean, **CLOSE)
    torch.testing.assert_close(net.bn.running_var[0], variance, **CLOSE)


def perturb_as_batch(net: nn.Module, batch: Batch, settings: AttackConfig, number: int) -> torch.Tensor:
    """The images that re-estimation attacks: its batch `number`, on the net's own batch statistics."""
    first, centre = start(settings, batch.x, batch.rows, number, seed=3)
    return pgd(settings, lambda x: forward(net, x, "adv", "frozen"), centre, first, batch.y)


def test_each_branch_sees_its_own_images(small_net):
    net, settings = convert_to_split_batch_norm(small_net), AttackConfig(eps_255=40, step_255=20, steps=3)
    seen = batches()
    reestimate(net, seen, settings, settings=AveragingConfig("swa"), precision=FP64, seed=0, halves=BOTH)
    mean, _ = mean_statistics(net, [batch.x for batch in seen])
    torch.testing.assert_close(net.bn.running_mean[0], mean, **CLOSE)
    assert (net.bn.running_mean[1] - mean).abs().max() > 1e-3


def test_the_published_code_counts_the_attacks_forwards_and_forgets_the_clean_branch(small_net):
    net, settings = convert_to_split_batch_norm(small_net), AveragingConfig("swa", reestimate="published-code")
    seen = batches()
    attack = AttackConfig(eps_255=40, step_255=0, steps=2, start="published-code")
    reestimate(net, seen, attack, settings=settings, precision=FP64, seed=5, halves=BOTH)
    assert net.bn.running_mean[0].eq(0).all() and net.bn.running_var[0].eq(1).all()
    # A step size of 0 shows what is counted: the noisy start, its cut to [0, 1], and the attacked batch.
    inputs = []
    for i, batch in enumerate(seen):
        noisy, _ = start(attack, batch.x, batch.rows, i, seed=5)
        inputs += [noisy, noisy.clamp(0, 1), noisy.clamp(0, 1)]
    mean, variance = mean_statistics(net, inputs)
    torch.testing.assert_close(net.bn.running_mean[1], mean, **CLOSE)
    torch.testing.assert_close(net.bn.running_var[1], variance, **CLOSE)
