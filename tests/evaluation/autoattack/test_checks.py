"""What AutoAttack cannot evaluate is refused in one line before anything is attacked."""

import pytest
import torch
from torch import nn

from fastarat.common.errors import UserError
from fastarat.evaluation.autoattack.checks import check_model
from tests.helpers.small_autoattack import NUM, images_and_labels


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"eps": 0}, "eps is 0: give a number above 0"),
        ({"eps": -0.1}, "eps is -0.1"),
        ({"eps": float("nan")}, "eps is nan"),
        ({"eps": 8, "norm": "linf"}, r"eps is 8: give it in units where pixels are in \[0, 1\], as 8/255"),
        ({"norm": "l1"}, "unknown norm 'l1'"),
        ({"batch": 0}, "batch is 0"),
        ({"attacks": ("apgd-cf",)}, "did you mean 'apgd-ce'"),
        ({"attacks": ("square", "square")}, "attack square is named twice: give each once"),
        ({"targets": 0}, "targets is 0: give 1 or more"),
        ({"steps": 0}, "steps is 0"),
        ({"step": float("nan")}, "step is nan"),
        ({"step": 0}, "step is 0: give a number above 0"),
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
