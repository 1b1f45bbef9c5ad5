"""Plain PyTorch and variants with another algorithm are held against their definition: what is wrong is refused."""

import pytest
import torch

from bench.common.inputs import METHODS
from bench.ladder.subjects import PlainForm, PlainSubject
from bench.ladder.variants import halved, with_attack, with_running_statistics
from fastarat.training.tuning.gate import LEARNING_RATE, TOLERANCES, batches_of, compare, definition
from tests.helpers.ladders import own, right_of, setting_of, with_method, with_rate


@pytest.mark.parametrize("method", ["arat", "at"])
@pytest.mark.parametrize(
    "form",
    [PlainForm(True, True, False), PlainForm(channels_last=False), PlainForm(), PlainForm(half="bf16")],
    ids=["published", "resident", "channels-last", "bf16"],
)
def test_plain_pytorch_trains_as_the_definition_does(method, form):
    verdict = compare(PlainSubject(setting_of(method), form), right_of(method), form.half or "fp32")
    assert verdict.problem is None
    assert verdict.tolerance == TOLERANCES[form.half or "fp32"]
    terms = {"adversarial_cross_entropy", *(("clean_cross_entropy", "invariance") if method == "arat" else ())}
    wanted = {"loss", *terms, "running means", "running variances", "parameters"}
    assert wanted | {"movement: shared", "length: adv"} <= verdict.errors.keys()
    assert all(f"{kind}: {name}" in verdict.errors for kind in ("full size", "free") for name in {"loss", *terms})


OTHERS = [method for method in METHODS if method not in ("arat", "at")]


@pytest.mark.parametrize("method", OTHERS)
def test_every_method_is_held_against_its_definition_and_has_a_twin_in_plain_pytorch(method):
    setting = setting_of(method)
    batches = batches_of(setting)
    right = definition(setting, batches)
    subjects = [own(setting)]
    if method != "arrest":
        subjects += [PlainSubject(setting, PlainForm()), PlainSubject(setting, PlainForm(half="bf16"))]
    for subject, precision in zip(subjects, ("fp32", "fp32", "bf16"), strict=False):
        verdict = compare(subject, (batches, right), precision)
        assert verdict.problem is None
        assert {"loss", "running means", "parameters", "full size: loss", "free: loss"} <= verdict.errors.keys()
    if setting.config.attack.steps:
        weaker = with_attack(setting, step_255=setting.config.attack.known_step_255 / 2)
        assert compare(own(weaker), (batches, right), "fp32").problem


@pytest.mark.parametrize("method", [method for method in METHODS if method != "arrest"])
def test_plain_losses_weigh_their_terms_as_the_definition_does(method):
    """Of images far apart: a net at its beginning predicts attacked images as it does clean ones, so that the steps
    of a comparison hardly tell how much a divergence weighs."""
    setting = setting_of(method)
    if method == "lbgat":
        setting = with_method(setting, beta=6.0)
    fast, plain = own(setting), PlainSubject(setting, PlainForm())
    batch = batches_of(setting)[0]
    parts = fast.training.parts
    given = batch.x, batch.x.flip(0), batch.y
    ours, theirs = parts.method.loss(parts.model, *given)[0], plain.plain.losses(*given)["loss"]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)  # float32, some hundred operations
    ours.backward()
    theirs.backward()
    gradients = [sum(float(p.grad.norm()) ** 2 for p in every) for every in (parts.parameters, plain.plain.parameters)]
    assert gradients[0] == pytest.approx(gradients[1], rel=1e-3)


@pytest.mark.parametrize("form", [PlainForm(), PlainForm(half="bf16")], ids=["fp32", "bf16"])
@pytest.mark.parametrize("change", ["steps", "rate"])
def test_plain_pytorch_made_wrong_is_refused(form, change):
    setting = with_attack(setting_of(), steps=2) if change == "steps" else with_rate(setting_of(), LEARNING_RATE / 2)
    assert compare(PlainSubject(setting, form), right_of("arat"), form.half or "fp32").problem


def test_what_changes_the_algorithm_is_held_against_its_own_twin_and_not_the_ladders():
    for changed in (with_running_statistics(setting_of()), halved(setting_of())):
        batches = batches_of(changed)
        assert compare(own(changed), (batches, definition(changed, batches)), "fp32").problem is None
        assert compare(own(changed), right_of("arat"), "fp32").problem


RUNNING_WRONG = {
    "one attack step fewer": lambda s: with_attack(s, steps=s.config.attack.steps - 1),
    "an attack that never moves": lambda s: with_attack(s, step_255=0.0),
    "half the step": lambda s: with_attack(s, step_255=s.config.attack.known_step_255 / 2),
    "a tenth of the radius": lambda s: with_attack(s, eps_255=s.config.attack.eps_255 / 10),
}


@pytest.fixture(scope="module")
def by_running_statistics():
    """A setting whose attack uses the running statistics, its batches and its definition's results."""
    setting = with_running_statistics(setting_of(steps=10))
    batches = batches_of(setting)
    return setting, batches, definition(setting, batches)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_an_attack_by_running_statistics_is_held_against_its_own_definition(by_running_statistics, dtype):
    setting, batches, found = by_running_statistics
    assert compare(own(setting, dtype), (batches, found), dtype).problem is None


# In bf16 as well, whose tolerances are the widest.
@pytest.mark.parametrize("wrong", RUNNING_WRONG.values(), ids=RUNNING_WRONG)
def test_a_wrong_attack_by_running_statistics_is_refused(by_running_statistics, wrong):
    setting, batches, found = by_running_statistics
    assert compare(own(wrong(setting), "bf16"), (batches, found), "bf16").problem
