"""RobustBench's calls, with no more than the import changed."""

import pytest
import torch
from torch import nn

from fastarat import UserError, evaluate
from fastarat.attacks import autoattack as driver
from fastarat.robustbench import AutoAttack, benchmark


@pytest.fixture
def net(monkeypatch) -> nn.Module:
    """Of 10 classes for the digits; the attacks are cut down."""
    cut = {"apgd_ce": {"steps": 5}, "apgd_t": {"steps": 2}, "fab_t": {"steps": 2}, "square": {"queries": 20}}
    for name, settings in cut.items():
        attack = getattr(driver, name)
        short = lambda *args, attack=attack, settings=settings, **given: attack(*args, **(given | settings))  # noqa: E731
        monkeypatch.setattr(driver, name, short)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()


def test_a_standard_evaluation_gives_all_images_of_which_the_broken_ones_are_adversarial(net):
    x = torch.rand(20, 1, 8, 8)
    with torch.no_grad():
        y = net(x).argmax(1)
    attack = AutoAttack(net, norm="Linf", eps=8 / 255, version="standard", seed=0, device="cpu")
    x_adv = attack.run_standard_evaluation(x, y, bs=8)
    with torch.no_grad():
        wrong = net(x_adv).argmax(1) != y
    result = evaluate(net, x, y, eps=8 / 255, batch=8)
    assert torch.equal(wrong, ~result.flags["square"]) and 0 < wrong.sum() < 20
    assert torch.equal(x_adv[~wrong], x[~wrong]) and (x_adv - x).abs().max() <= 8 / 255 + 1e-6
    assert attack.evaluation is not None and attack.evaluation.counts == result.counts


def test_a_custom_version_runs_the_attacks_it_is_given(net, capsys):
    x, y = torch.rand(4, 1, 8, 8), torch.zeros(4).long()
    attack = AutoAttack(net, norm="L2", eps=0.5, version="custom", attacks_to_run=["apgd-ce", "square"])
    attack.run_standard_evaluation(x, y)
    assert attack.evaluation is not None and list(attack.evaluation.flags) == ["clean", "apgd-ce", "square"]
    assert "robust after apgd-ce" in capsys.readouterr().err


def test_it_logs_to_a_file_and_goes_on_from_a_state(net, tmp_path):
    x, y = torch.rand(4, 1, 8, 8), torch.zeros(4).long()
    attack = AutoAttack(net, eps=0.1, version="custom", attacks_to_run=["apgd-ce"], log_path=tmp_path / "log.txt")
    for _ in range(2):
        attack.run_standard_evaluation(x, y, bs=2, state_path=tmp_path / "state")
    assert (tmp_path / "log.txt").read_text().count("robust after apgd-ce") == 2
    assert (tmp_path / "state/autoattack.json").exists()


def test_a_benchmark_gives_two_fractions(net):
    clean, robust = benchmark(net, n_examples=30, dataset="digits", threat_model="Linf", eps=0.01)
    assert 0 <= robust <= clean <= 1
    x, y = torch.rand(10, 1, 8, 8), torch.zeros(10).long()
    with torch.no_grad():
        right = (net(x).argmax(1) == y).float().mean().item()
    assert benchmark(net, x_test=x, y_test=y, eps=0.01)[0] == pytest.approx(right)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda net: AutoAttack(net, norm="L1"), "norm 'L1': there is Linf and L2"),
        (lambda net: AutoAttack(net, version="rand"), "version 'rand': there is standard and custom"),
        (lambda net: AutoAttack(net, version="custom"), "attacks_to_run with version 'custom'"),
        (lambda net: AutoAttack(net, attacks_to_run=["square"]), "attacks_to_run with version 'standard'"),
        (lambda net: benchmark(net, threat_model="corruptions", eps=0.1), "threat_model 'corruptions'"),
        (lambda net: benchmark(net, dataset="digits"), "eps is not given, and Linf needs it"),
        (lambda net: benchmark(net, eps=0.1, x_test=torch.zeros(1, 1, 8, 8)), "x_test and y_test, or neither"),
        (lambda net: benchmark(net, dataset="imagenet", eps=0.1), "Unknown data set 'imagenet'"),
    ],
)
def test_what_there_is_not_is_one_line_that_says_what_there_is(net, call, says):
    with pytest.raises(UserError, match=says):
        call(net)
