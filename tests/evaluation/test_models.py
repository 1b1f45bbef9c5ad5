"""Which models and images `fastarat.evaluate` takes, and what it says of others."""

import sys

import pytest
import torch
from torch import Tensor, nn

import fastarat
from fastarat import AttackConfig, UserError
from fastarat.common.errors import WorkError
from fastarat.data.images.dataset import Images
from fastarat.models.batch_norm import to_mode

pytestmark = pytest.mark.usefixtures("short_attacks")
EPS = 0.03


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"attack": "apgd"}, "unknown attack 'apgd'"),
        ({"attack": "square,square"}, "square is named twice"),
        ({"attack": "autoattack,fab-t"}, "fab-t is named twice"),
        ({"attack": "pgd,none"}, "unknown attack 'none'"),
        ({"attack": ""}, "no attack is named: .* none for clean accuracy alone"),
        ({"eps": 0}, "eps is 0: give a number above 0"),
        ({"eps": "8/255"}, "eps is '8/255': give a finite float"),
        ({"eps": float("inf")}, "eps is inf: give a finite float"),
        ({"eps": None, "norm": ["linf"]}, "unknown norm"),
        ({"norm": None, "eps": EPS}, "unknown norm 'None': give l2, linf"),
        ({"steps": 2.5}, "steps is 2.5: give an int"),
        ({"step": "1/255"}, "step is '1/255': give a finite float"),
        ({"seed": None}, "seed is None: give an int"),
        ({"seed": -1}, r"seed is -1: give 0 or more, below 2\^64"),
        ({"seed": 2**64 - 1, "batch": 0}, "^batch is 0: give 1 or more$"),
        ({"batch": None}, "batch is None: give an int"),
        ({"batch": True}, "batch is True: give an int"),
        ({"batch": 2**32}, r"batch is 4294967296: give a number below 2\^32"),
        ({"attack": None}, "attack is None: give names"),
        ({"attack": ["pgd"]}, r"attack is \['pgd'\]: give names, separated by commas"),
        ({"num_images": 0}, "num_images is 0"),
        ({"num_images": "5"}, "num_images is '5': give a whole number of 1 or more"),
        ({"images": torch.rand(20, 3, 8, 8).to_sparse()}, "images or labels are torch.sparse_coo: give dense tensors"),
        ({"labels": torch.ones(20, dtype=torch.bool)}, r"labels are torch.bool \[20\]: give a class number for each"),
        ({"images": torch.rand(20, 3, 8, 8) * 255}, "divide them by 255"),
        ({"images": torch.randn(20, 3, 8, 8)}, "leave out their normalisation"),
        ({"images": torch.rand(20, 3, 8, 8) / 255}, "as if divided by 255 twice: divide them once"),
        ({"images": torch.zeros(0, 3, 8, 8), "labels": torch.zeros(0).long()}, "there are no images"),
        ({"images": [[0.0]]}, "images and labels are list and Tensor: give tensors"),
        ({"images": torch.rand(20, 1, 8, 8)}, "the model takes no images"),
        ({"labels": torch.zeros(3).long()}, "a class number for each image"),
        ({"labels": torch.full((20,), 10)}, "label 10 of image 0 is no class of the model, whose 10"),
        ({"images": torch.full((20, 3, 8, 8), 1.001)}, r"images lie in \[1.001, 1.001\], not in"),
        ({"images": torch.full((20, 3, 8, 8), float("nan"))}, "3840 of 3840 pixels are NaN"),
        ({"device": "meta"}, "the model is on cpu, not on meta: move it there"),
        ({"device": "gpu"}, "device 'gpu' is none that torch knows: give cpu or cuda"),
        ({"model": lambda x: x}, "the model is a function: give a torch.nn.Module"),
        ({"dtype": "fp16"}, "unknown dtype 'fp16'"),
        ({"engine": "slow"}, "unknown engine 'slow'"),
        ({"engine": "pyautoattack", "attack": "pgd"}, "pyautoattack has no pgd"),
        ({"engine": "pyautoattack", "targets": 3, "attack": "fab-t"}, "the standard's targets, not 3: give 9"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value,
)
def test_bad_input_is_one_line(net, images, labels, change, says):
    given = {"model": net, "images": images, "labels": labels, "attack": "apgd-ce", **change}
    with pytest.raises(UserError, match=says) as error:
        fastarat.evaluate(**given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("last", "attack", "says"),
    [
        (lambda net: net.train(), "pgd", "in train mode"),
        (lambda net: nn.Sequential(net[0]).eval(), "pgd", r"returns \[2, 8, 3, 3\] for 2 images, not logits"),
        (lambda net: nn.Sequential(*net, nn.Linear(10, 7)).eval(), "autoattack", "has 7: give 6 targets"),
        (lambda net: nn.Sequential(*net, nn.Linear(10, 2)).eval(), "autoattack", "give attacks without targets"),
        (lambda net: nn.Sequential(*net, nn.Threshold(1e9, float("nan"))).eval(), "pgd", "returns NaN"),
    ],
    ids=["train mode", "no logits", "7 classes", "2 classes", "NaN"],
)
def test_a_model_that_cannot_be_evaluated_is_one_line(net, images, last, attack, says):
    with pytest.raises(UserError, match=says):
        fastarat.evaluate(last(net), images, torch.zeros(20).long(), attack)


class Around(nn.Module):
    """A net, and what is done with it."""

    def __init__(self, net: nn.Module, call):
        super().__init__()
        self.net, self.call = net, call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.net, x)


def refuses(net: nn.Module, x: Tensor) -> Tensor:
    raise ValueError("no such images")


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (torch.no_grad()(lambda net, x: net(x)), "no gradient by its images .*no_grad.* or square, which needs none"),
        (lambda net, x: net(torch.rand_like(x)), "no gradient by its images"),
        (lambda net, x: nn.functional.one_hot(net(x).argmax(1), 10), "torch.int64 numbers: give logits"),
        (refuses, r"takes no images \[2, 3, 8, 8\]: ValueError: no such images"),
        (lambda net, x: net(x.sub_(0.5)), "in-place operation"),
    ],
    ids=["no_grad", "blind", "argmax", "ValueError", "in place"],
)
def test_a_net_that_cannot_be_attacked_is_one_line_and_harms_no_image(net, images, labels, call, says):
    before = images.clone()
    with pytest.raises(UserError, match=says):
        fastarat.evaluate(Around(net, call).eval(), images, labels, "square,apgd-ce", eps=EPS)
    assert torch.equal(images, before)


class OfTheBatch(nn.Module):
    """Normalises by the mean of the batch, whatever mode it is in."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0, keepdim=True)


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        (
            nn.BatchNorm2d(3, track_running_stats=False),
            "the batch-norm '0' has no running statistics and uses those of",
        ),
        (OfTheBatch(), "depends on the other images of its batch, as batch statistics make it"),
    ],
    ids=["batch-norm", "of its own"],
)
@pytest.mark.parametrize("attack", ["none", "pgd", "square"])
def test_a_model_whose_predictions_hang_on_the_rest_of_the_batch_is_refused(net, images, labels, layer, says, attack):
    with pytest.raises(UserError, match=says):
        fastarat.evaluate(nn.Sequential(layer, *net).eval(), images, labels, attack, eps=EPS)


@pytest.mark.parametrize("layer", [nn.InstanceNorm2d(3), nn.GroupNorm(1, 3), nn.BatchNorm2d(3)])
def test_a_norm_of_each_image_by_itself_is_evaluated(net, images, labels, layer):
    assert fastarat.evaluate(nn.Sequential(layer, *net).eval(), images, labels, "none").num_images == 20


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("attack", ["pgd", "autoattack"])
def test_it_is_the_same_where_the_caller_has_turned_gradients_off(net, images, labels, mode, attack):
    own = fastarat.evaluate(net, images, labels, attack, eps=EPS)
    with mode():
        given = images.clone(), labels.clone()  # of inference_mode's own kind
        found = fastarat.evaluate(net, *given, attack, eps=EPS)
    assert found.counts == own.counts and torch.equal(found.x_adv, own.x_adv) and not found.x_adv.is_inference()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_pixels_that_a_rounding_has_put_outside_are_clipped_and_it_is_said(net, labels, dtype, capsys):
    bytes_ = torch.randint(0, 256, (20, 3, 8, 8), dtype=torch.uint8)
    bytes_[0, 0, 0, :2] = torch.tensor([0, 255])
    images = (bytes_.double() / 255).to(dtype)
    beyond = images.clone()
    beyond[images == 0], beyond[images == 1] = -torch.finfo(dtype).eps, 1 + torch.finfo(dtype).eps
    assert beyond.min() < 0 and beyond.max() > 1
    net, given = (net.double(), images) if dtype == torch.float64 else (net, images)
    own, found = (fastarat.evaluate(net, x, labels, "pgd", eps=EPS) for x in (given, beyond))
    assert torch.equal(own.x_adv, found.x_adv) and own.counts == found.counts
    assert capsys.readouterr().err.count("a rounding, are clipped") == 1


def test_an_attack_and_accuracies_are_the_same_under_inference_mode(net, images, labels):
    settings = AttackConfig(batch_norm="eval", steps=2)
    pixels = (255 * images).byte()
    as_set = Images(pixels.permute(0, 2, 3, 1).contiguous().numpy(), labels.numpy())
    own = fastarat.perturb(net, images, labels, settings), fastarat.accuracies(net, as_set, 255, 10, settings)
    with torch.inference_mode():
        found = fastarat.perturb(net, images.clone(), labels.clone(), settings)
        assert torch.equal(found, own[0]) and not found.is_inference()
        assert fastarat.accuracies(net, as_set, 255, 10, settings) == own[1]


def exported(net: nn.Module, images: Tensor, **dynamic) -> nn.Module:
    return torch.export.export(net, (images[:2],), **dynamic).module()


def test_an_exported_net_is_evaluated_as_it_was_exported(net, images, labels):
    any_batch = exported(net, images, dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    own, found = (fastarat.evaluate(model, images, labels, "pgd", eps=EPS) for model in (net, any_batch))
    assert found.counts == own.counts
    inside = nn.Sequential(nn.Dropout(), any_batch)
    with pytest.raises(UserError, match=r"in train mode \(in Sequential\)"):
        fastarat.evaluate(inside, images, labels, "pgd", eps=EPS)
    assert fastarat.evaluate(to_mode(inside, training=False), images, labels, "pgd", eps=EPS).counts == own.counts
    settings = AttackConfig(batch_norm="eval", steps=2)
    x_adv = [fastarat.perturb(model, images, labels, settings) for model in (net, any_batch, inside)]
    assert torch.equal(x_adv[0], x_adv[1]) and torch.equal(x_adv[0], x_adv[2]) and not inside[0].training
    with pytest.raises(WorkError, match=r"fails on a batch of 20 images, though it took 2 .*: let it take any number"):
        fastarat.evaluate(exported(net, images), images, labels, "pgd", eps=EPS)


def fails_on_three(net: nn.Module, x: Tensor) -> Tensor:
    return net(x) / (len(x) != 3) if len(x) != 3 else 1 / 0


def test_a_net_that_fails_on_a_later_batch_is_one_line_that_names_its_size(net, images, labels):
    model = Around(net, fails_on_three).eval()
    with pytest.raises(WorkError, match=r"a batch of 3 images, though it took 2 \(ZeroDivisionError: ") as error:
        fastarat.evaluate(model, images[:3], labels[:3], "pgd", eps=EPS)
    assert "\n" not in str(error.value) and "give another batch size" in str(error.value)
    assert fastarat.evaluate(model, images[:2], labels[:2], "pgd", eps=EPS, batch=1).num_images == 2


@pytest.mark.parametrize(("size", "kind"), [(2, UserError), (3, WorkError)])
def test_a_net_that_leaves_the_program_has_failed(net, images, labels, size, kind):
    def leaves(net: nn.Module, x: Tensor) -> Tensor:
        return sys.exit(0) if len(x) == size else net(x)

    with pytest.raises(kind, match="SystemExit: 0"):
        fastarat.evaluate(Around(net, leaves).eval(), images[:3], labels[:3], "pgd", eps=EPS)


def test_square_and_clean_accuracy_ask_for_no_gradient(net, images, labels):
    blind = Around(net, torch.no_grad()(lambda net, x: net(x))).eval()
    assert fastarat.evaluate(blind, images, labels, "none").clean == 95
    assert fastarat.evaluate(blind, images, labels, "square", eps=EPS).counts["square"] < 19


def test_images_of_any_float_format_have_a_state(net, images, labels, tmp_path):
    assert fastarat.evaluate(net, images.bfloat16(), labels, "pgd", eps=EPS, state=tmp_path).complete


def test_two_classes_are_enough_for_attacks_without_targets(net, images):
    two = nn.Sequential(net, nn.Linear(10, 2)).eval()
    with torch.no_grad():
        labels = two(images).argmax(1)
    assert fastarat.evaluate(two, images, labels, "pgd,cw,apgd-ce,square", eps=0.2).robust < 100


def test_a_state_that_cannot_be_written_is_one_line(net, images, labels, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot use the directory .*file/state for the state"):
        fastarat.evaluate(net, images, labels, "pgd", state=tmp_path / "file/state")
