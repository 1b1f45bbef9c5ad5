"""AR-AT's loss against its formula written out in plain torch, and every switch of its paper."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastarat.common.errors import UserError
from fastarat.config.method import ARATConfig
from fastarat.methods.arat import ARAT, distance
from fastarat.methods.registry import build_method
from fastarat.models.convert import convert_to_split_batch_norm
from fastarat.models.registry import build_model

W = 0.7  # the clean accuracy that balances the two cross-entropies
Y = torch.tensor([2, 0])
# float64: some fifty operations forward and back, 1e-16 each; batch-norm over two rows magnifies a little.
CLOSE = {"rtol": 1e-9, "atol": 1e-11}


def half_batch(shift: float) -> torch.Tensor:
    return (torch.rand(2, 1, 5, 5, dtype=torch.float64) + shift).clamp(0, 1)


def normalise(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Batch-norm of [N, C, …] by the batch's own statistics."""
    axes = [axis for axis in range(x.dim()) if axis != 1]
    shape = [1, -1] + [1] * (x.dim() - 2)
    mean = x.mean(axes, keepdim=True)
    variance = (x - mean).square().mean(axes, keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt() * weight.view(shape) + bias.view(shape)


def by_hand(net: nn.Module, method: ARAT, x: torch.Tensor, x_adv: torch.Tensor) -> torch.Tensor:
    """The whole loss of a split `SmallNet` aligned at `bn` and `act`, from its tensors alone."""
    settings, halves = method.settings, {}
    for i, images in enumerate((x, x_adv)):
        out = F.conv2d(images, net.conv.weight, padding=1)
        feature = normalise(out, net.bn.weight[i], net.bn.bias[i]).clamp_min(0).mean((2, 3))
        logits = feature @ net.linear.weight.T + net.linear.bias
        p_true = logits.exp().gather(1, Y[:, None]) / logits.exp().sum(1, keepdim=True)
        halves[i] = feature, -p_true.log().mean()
    (z_clean, ce_clean), (z_adv, ce_adv) = halves[0], halves[1]

    def predicted(features: torch.Tensor, layer: int) -> torch.Tensor:
        first, norm, _, last = method.predictors[layer]
        hidden = normalise(features @ first.weight.T, norm.weight, norm.bias).clamp_min(0)
        return hidden @ last.weight.T + last.bias

    total = W * ce_adv + (1 - W) * ce_clean
    for layer in range(2):
        h, z = predicted(z_adv, layer), z_clean.detach()
        cosine = (h * z).sum(1) / (h.square().sum(1).sqrt() * z.square().sum(1).sqrt())
        total = total + settings.gamma / 2 * (1 - cosine).mean()
    return total


def arat(net: nn.Module, **settings: object) -> ARAT:
    """The method aligned at two layers of `net`, in float64, with the balance set."""
    method = build_method(ARATConfig(gamma=5.0, layers=("bn", "act"), **settings), net, (1, 5, 5)).double()
    method.begin_epoch(torch.tensor(W, dtype=torch.float64))
    assert isinstance(method, ARAT)
    return method


def test_the_loss_and_all_its_gradients_are_those_of_the_formula(small_net):
    net = convert_to_split_batch_norm(small_net)
    method, x, x_adv = arat(net), half_batch(0.0), half_batch(0.2)
    loss, _ = method.loss(net, x, x_adv, Y)
    expected = by_hand(net, method, x, x_adv)
    torch.testing.assert_close(loss, expected, **CLOSE)
    parameters = [*net.parameters(), *method.parameters()]
    ours, theirs = torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters)
    for mine, theirs_ in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, theirs_, **CLOSE)


def test_a_forward_updates_the_statistics_of_both_branches_once(small_net):
    net = convert_to_split_batch_norm(small_net)
    method, x, x_adv = arat(net), half_batch(0.0), half_batch(0.2)
    expected = net.bn.running_mean.clone()
    for i, images in enumerate((x, x_adv)):
        expected[i] = 0.9 * expected[i] + 0.1 * net.conv(images).detach().mean((0, 2, 3))
    method.loss(net, x, x_adv, Y)
    torch.testing.assert_close(net.bn.running_mean, expected, **CLOSE)


@pytest.mark.parametrize(
    ("stop_gradient", "clean_moves", "adversarial_moves"),
    [("clean", False, True), ("adversarial", True, False), ("none", True, True), ("symmetric", True, True)],
)
@pytest.mark.parametrize("predictor", [True, False])
def test_the_gradient_is_stopped_on_the_side_asked_for(
    small_net, stop_gradient, clean_moves, adversarial_moves, predictor
):
    method = arat(convert_to_split_batch_norm(small_net), stop_gradient=stop_gradient, predictor=predictor)
    clean, adversarial = torch.rand(2, 6, 4, dtype=torch.float64).requires_grad_().unbind()
    gradients = torch.autograd.grad(method.invariance(0, clean, adversarial), [clean, adversarial], allow_unused=True)
    moves = [gradient is not None and bool(gradient.abs().max() > 0) for gradient in gradients]
    assert moves == [clean_moves, adversarial_moves]


def test_symmetric_is_the_mean_of_the_two_one_sided_losses(small_net):
    net = convert_to_split_batch_norm(small_net)
    method = arat(net, predictor=False)
    clean, adversarial = torch.rand(2, 6, 4, dtype=torch.float64)
    sides = [arat(net, predictor=False, stop_gradient=side) for side in ("clean", "adversarial", "symmetric")]
    one, other, both = (side.invariance(0, clean, adversarial) for side in sides)
    torch.testing.assert_close(both, (one + other) / 2, **CLOSE)
    cosine = F.cosine_similarity(clean, adversarial).mean()
    torch.testing.assert_close(method.invariance(0, clean, adversarial), 1 - cosine, **CLOSE)


def test_without_a_predictor_there_is_nothing_more_to_train(small_net):
    method = arat(convert_to_split_batch_norm(small_net), predictor=False)
    assert list(method.parameters()) == []


def test_a_predictor_narrows_to_a_quarter_and_widens_again(small_net):
    method = arat(convert_to_split_batch_norm(small_net))
    shapes = {name: tuple(p.shape) for name, p in method.predictors[0].named_parameters()}
    assert shapes == {"0.weight": (1, 4), "1.weight": (1,), "1.bias": (1,), "3.weight": (4, 1), "3.bias": (4,)}


def test_metrics_of_distance_are_those_of_their_names():
    moving, target = torch.rand(2, 3, 4, dtype=torch.float64)
    p, q = target.softmax(1), moving.softmax(1)
    expected = {
        "mse": (moving - target).square().mean(),
        "kl": (p * (p.log() - q.log())).sum(1).mean(),
        "cosine": 1 - ((moving * target).sum(1) / moving.norm(dim=1) / target.norm(dim=1)).mean(),
    }
    for metric, value in expected.items():
        torch.testing.assert_close(distance(metric, moving, target), value, **CLOSE)
        assert distance(metric, moving, moving).abs() < 1e-14


def test_without_auto_balance_the_two_fixed_weights_count(small_net):
    net = convert_to_split_batch_norm(small_net)
    method = arat(net, auto_balance=False, adversarial_weight=2.0, clean_weight=0.25)
    terms = method.terms(net, half_batch(0.0), half_batch(0.2), Y)
    clean, adversarial = terms.clean_logits, terms.adversarial_logits
    torch.testing.assert_close(terms.classification["ce_adv"], 2 * F.cross_entropy(adversarial, Y), **CLOSE)
    torch.testing.assert_close(terms.classification["ce_clean"], F.cross_entropy(clean, Y) / 4, **CLOSE)
    assert method.num_balance_images == 0 and arat(net).num_balance_images == 10_000


def test_metrics_are_named_detached_and_unweighted(small_net):
    net = convert_to_split_batch_norm(small_net)
    method, x, x_adv = arat(net), half_batch(0.0), half_batch(0.2)
    terms = method.terms(copy.deepcopy(net), x, x_adv, Y)
    clean, adversarial = terms.clean_logits, terms.adversarial_logits
    loss, metrics = method.loss(net, x, x_adv, Y)
    assert tuple(metrics) == method.metrics
    assert not any(value.requires_grad for value in metrics.values())
    assert metrics["loss"] == loss.detach()
    torch.testing.assert_close(metrics["adversarial_cross_entropy"], F.cross_entropy(adversarial, Y), **CLOSE)
    torch.testing.assert_close(metrics["clean_cross_entropy"], F.cross_entropy(clean, Y), **CLOSE)
    invariance = terms.invariance["invariance/bn"] + terms.invariance["invariance/act"]
    torch.testing.assert_close(metrics["invariance"], invariance, **CLOSE)
    assert float(metrics["clean_accuracy"]) == float((clean.argmax(1) == Y).float().mean())


@pytest.mark.parametrize("kind", ["split", "shared", "mixed"])
def test_equal_halves_give_equal_logits_with_every_kind_of_batch_norm(small_net, kind):
    net, x = convert_to_split_batch_norm(small_net, kind), half_batch(0.0)
    method = arat(net, batch_norm=kind, predictor=False)
    terms = method.terms(net, x, x.clone(), Y)
    torch.testing.assert_close(terms.clean_logits, terms.adversarial_logits, **CLOSE)
    assert terms.invariance["invariance/bn"].abs() < 1e-14


def test_the_user_chooses_the_layers_or_the_net_does():
    net = build_model("tiny", 3)
    assert build_method(ARATConfig(layers=("layer2.0.bn2",)), net, (3, 8, 8)).layers == ("layer2.0.bn2",)
    assert build_method(ARATConfig(), build_model("tiny", 3), (3, 8, 8)).layers == ("layer3.0.bn1", "layer3.0.bn2")


def test_a_net_without_a_choice_of_its_own_asks_for_layers(small_net):
    with pytest.raises(UserError, match="layers"):
        build_method(ARATConfig(), convert_to_split_batch_norm(small_net), (1, 5, 5))


@pytest.mark.parametrize("metric", ["cosine", "mse", "kl"])
def test_the_loss_is_float32_in_half_precision(metric):
    net = build_model("tiny", 3)
    method = build_method(ARATConfig(metric=metric), net, (3, 8, 8))
    x = torch.rand(4, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        terms = method.terms(net, x, x, torch.tensor([0, 1, 2, 0]))
    assert {value.dtype for value in terms.summands.values()} == {torch.float32}


def test_labels_are_smoothed_in_both_cross_entropies_and_not_in_what_is_reported(small_net):
    net = convert_to_split_batch_norm(small_net)
    method = arat(net, auto_balance=False, adversarial_weight=1.0, clean_weight=1.0, label_smoothing=0.3)
    terms = method.terms(net, half_batch(0.0), half_batch(0.2), Y)
    label = 0.7 * torch.eye(3, dtype=torch.float64)[Y] + 0.1
    for name, logits in (("ce_clean", terms.clean_logits), ("ce_adv", terms.adversarial_logits)):
        expected = -(label * logits.log_softmax(1)).sum(1).mean()
        torch.testing.assert_close(terms.classification[name], expected, **CLOSE)
    torch.testing.assert_close(terms.metrics["clean_cross_entropy"], F.cross_entropy(terms.clean_logits, Y), **CLOSE)
