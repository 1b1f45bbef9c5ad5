"""What trains otherwise than the definition is refused, in every method and format."""

import pytest
import torch

from fastarat.training.tuning.gate import compare
from tests.helpers.ladders import WRONG, own, right_of, setting_of


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("method", ["arat", "at"])
def test_fastarat_in_every_format_trains_as_its_definition_does(method, dtype):
    assert compare(own(setting_of(method), dtype), right_of(method), dtype).problem is None


OF_ARAT = ("at", "a lost stop-gradient")  # which AT has not


# In bf16, whose tolerances are the widest; float32 is refused in the tests of each method and of plain PyTorch.
@pytest.mark.parametrize(("method", "wrong"), [(m, w) for w in WRONG for m in ("arat", "at") if (m, w) != OF_ARAT])
def test_a_training_made_wrong_is_refused(wrong, method):
    setting = WRONG[wrong](setting_of(method))
    verdict = compare(own(setting, "bf16"), right_of(method), "bf16")
    assert verdict.problem is not None and "off by" in verdict.problem


def test_a_loss_that_is_not_a_number_is_refused():
    subject = own(setting_of())
    with torch.no_grad():
        subject.training.parts.parameters[0].fill_(float("nan"))
    assert compare(subject, right_of("arat"), "bf16").problem


def test_swapped_loss_weights_are_refused():
    subject = own(setting_of())
    subject.training.parts.method.begin_epoch(torch.tensor(0.4))
    assert "clean off by" in (compare(subject, right_of("arat"), "bf16").problem or "")


def test_exact_agreement_is_right():
    assert compare(own(setting_of(), "fp64"), right_of("arat"), "fp32").problem is None
