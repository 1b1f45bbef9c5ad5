"""RobustBench's calls, with no more than the import changed."""

import itertools
import json
import re
from enum import Enum

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from fastarat import UserError, evaluate, robustbench
from fastarat.evaluation.result import Evaluation
from fastarat.robustbench import AutoAttack, benchmark
from tests.helpers.attacks import shorten
from tests.helpers.small_sets import cifar_archive, cifar_files


@pytest.fixture
def net(monkeypatch) -> nn.Module:
    """Of 10 classes for the digits; the attacks are cut down."""
    few = {"steps": 2}
    shorten(monkeypatch, {"apgd-ce": {"steps": 5}, "apgd-t": few, "fab-t": few, "square": {"queries": 20}})
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


def correct(net: nn.Module, num_images: int = 30) -> tuple[Tensor, Tensor]:
    """Images, and what the net says of them."""
    x = torch.rand(num_images, 1, 8, 8)
    with torch.no_grad():
        return x, net(x).argmax(1)


CUSTOM = {"version": "custom", "attacks_to_run": ["apgd-ce"], "verbose": False}


def test_any_function_of_images_is_attacked_and_a_method_of_a_module_must_be_in_eval_mode(net):
    x, y = correct(net)
    x_adv = AutoAttack(net, eps=0.03, **CUSTOM).run_standard_evaluation(x, y)
    assert not torch.equal(x_adv, x)
    for function in (lambda images: net(images), net.forward):
        assert torch.equal(AutoAttack(function, eps=0.03, **CUSTOM).run_standard_evaluation(x, y), x_adv)
    with pytest.raises(UserError, match=r"in train mode \(in owner\)"):
        AutoAttack(net.train().forward, **CUSTOM).run_standard_evaluation(x, y)


def test_attacks_may_be_named_later_and_run_each_by_itself(net, capsys):
    x, y = correct(net)
    adversary = AutoAttack(net, eps=0.03)
    adversary.attacks_to_run = ["square", "fab", "apgd-dlr"]
    together, labels = adversary.run_standard_evaluation(x, y, return_labels=True)
    said = capsys.readouterr().err
    assert "fab runs in its targeted form, fab-t" in said and "apgd-dlr runs in its targeted form, apgd-t" in said
    assert adversary.evaluation is not None and list(adversary.evaluation.flags) == [
        "clean",
        "square",
        "fab-t",
        "apgd-t",
    ]
    with torch.no_grad():
        assert torch.equal(labels, net(together).argmax(1))
    alone = adversary.run_standard_evaluation_individual(x, y, bs=10)
    assert list(alone) == adversary.attacks_to_run == ["square", "fab", "apgd-dlr"]
    for name, x_adv in alone.items():
        adversary.attacks_to_run = [name]
        assert torch.equal(adversary.run_standard_evaluation(x, y), x_adv)
    assert adversary.clean_accuracy(x, y) == 1 > adversary.clean_accuracy(together, y)


def test_warnings_after_further_starts_count_all_starts_once(net, capsys):
    """The factor makes the cross-entropy flat at most points, for each start at others."""
    x, y = correct(net, 40)
    adversary = AutoAttack(lambda images: 600 * net(images), eps=0.1, **CUSTOM)
    counts = []
    for num_starts in (1, 3):
        adversary.apgd.n_restarts = num_starts
        adversary.run_standard_evaluation(x, y)
        found = adversary.evaluation
        assert found is not None
        (warning,) = found.warnings
        zero, searches = map(int, re.findall(r"^(\d+) of (\d+) searches", warning)[0])
        missed = found.num_not_attackable
        assert 0 < zero <= searches and f" {missed} of 40 images were not attackable by apgd-ce" in warning
        assert f"could search {missed} of the {found.counts['apgd-ce']} robust images" in warning
        assert f"warning: {warning}" in capsys.readouterr().err
        counts.append((searches, missed))
    (first, alone), (more, together) = counts
    assert more > first == 40 and 0 < together < alone


class Sine(nn.Module):
    """Where one start does not find what another does."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(12 * x)


def test_further_starts_break_more_and_all_that_is_broken_is_wrong_inside_the_ball(net, tmp_path):
    crooked = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), Sine(), nn.Linear(64, 10)).eval()
    x, y = correct(crooked, 200)

    def run(num_starts: int, **settings) -> tuple[Tensor, Evaluation]:
        adversary = AutoAttack(crooked, eps=0.012, **CUSTOM)
        adversary.apgd.n_restarts = num_starts
        x_adv = adversary.run_standard_evaluation(x, y, **settings)
        assert adversary.evaluation is not None
        return x_adv, adversary.evaluation

    (_, one), (x_adv, many) = run(1), run(5)
    assert many.counts["apgd-ce"] < one.counts["apgd-ce"] < one.counts["clean"] == many.counts["clean"] == 200
    assert AutoAttack(net, **CUSTOM).apgd.n_restarts == 5 and AutoAttack(net).apgd.n_restarts == 1
    with torch.no_grad():
        wrong = crooked(x_adv).argmax(1) != y
    assert torch.equal(wrong, ~many.flags["apgd-ce"]) and torch.equal(wrong.nonzero().flatten(), many.rows)
    assert torch.equal(x_adv[wrong], many.x_adv) and (x_adv - x).abs().max() <= 0.012 + 1e-6
    for _ in range(2):
        kept, _ = run(5, state_path=tmp_path / "state")
        assert torch.equal(kept, x_adv)


def test_a_log_that_cannot_be_written_is_known_before_the_work_and_loses_no_result_later(net, tmp_path, capsys):
    with pytest.raises(UserError, match=r"log_path .*no/log.txt: No such file or directory; give a file in a folder"):
        AutoAttack(net, log_path=tmp_path / "no" / "log.txt")
    (tmp_path / "there").mkdir()
    adversary = AutoAttack(net, eps=0.03, log_path=tmp_path / "there/log.txt", **CUSTOM)
    (tmp_path / "there/log.txt").unlink()
    (tmp_path / "there/log.txt").mkdir()
    x, y = correct(net, 4)
    assert adversary.run_standard_evaluation(x, y).shape == x.shape
    assert "nothing was added to" in capsys.readouterr().err


def test_a_benchmark_writes_what_a_leaderboard_asks_for(net, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x, y = correct(net, 8)
    threat = Enum("ThreatModel", {"Linf": "Linf"}).Linf
    given = {"dataset": "digits", "threat_model": threat, "eps": 0.03, "device": torch.device("cpu")}
    clean, robust = benchmark(net, model_name="Net2026/..", to_disk=True, x_test=x, y_test=y, **given)
    [file] = (tmp_path / "model_info/digits/Linf").iterdir()
    written = json.loads(file.read_text())
    assert written["clean_acc"] == f"{100 * clean:.2f}" == "100.00" and written["number"] == 8
    assert written["autoattack_acc"] == f"{100 * robust:.2f}" and written["name"] == "Net2026/.."


def test_a_benchmark_gives_two_fractions(net):
    clean, robust = benchmark(net, n_examples=30, dataset="digits", threat_model="Linf", eps=0.01)
    assert 0 <= robust <= clean <= 1
    x, y = torch.rand(10, 1, 8, 8), torch.zeros(10).long()
    with torch.no_grad():
        right = (net(x).argmax(1) == y).float().mean().item()
    assert benchmark(net, x_test=x, y_test=y, eps=0.01)[0] == pytest.approx(right)


def test_of_a_set_of_ones_own_a_benchmark_takes_a_random_choice_and_of_cifar_the_first(
    net, monkeypatch, tmp_path, capsys
):
    """A folder is sorted by class: its first images are all of one."""
    for split, label, number in itertools.product(("train", "test"), "ab", range(20)):
        path = tmp_path / "own" / split / label / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (number, number, number)).save(path)
    archive = cifar_archive(tmp_path / "cifar.tar.gz", "cifar10", cifar_files("cifar10"))
    seen: list[Tensor] = []
    monkeypatch.setenv("FASTARAT_DATA", str(tmp_path / "kept"))
    noted = lambda model, x, y, *given, **named: seen.append(y) or evaluate_alone(model, x, y, *given, **named)  # noqa: E731
    evaluate_alone = robustbench.evaluate
    monkeypatch.setattr(robustbench, "evaluate", noted)
    still = lambda x: -x.flatten(1)[:, :1] - torch.arange(10)  # noqa: E731
    for data, number in ((tmp_path / "own", 10), (tmp_path / "own", 10), (archive, 7), (tmp_path / "own", 40)):
        benchmark(still, n_examples=number, dataset=data, eps=0.01)
    first, again, of_cifar, everything = seen
    assert set(first.tolist()) == {0, 1} and torch.equal(first, again) and len(first) == 10
    assert of_cifar.tolist() == list(range(7)) and everything.tolist() == 20 * [0] + 20 * [1]
    assert capsys.readouterr().err.count("10 test images of own are chosen at random") == 2


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda net: AutoAttack(net, norm="L1"), "norm 'L1': there is Linf and L2"),
        (lambda net: AutoAttack(net, version="rand"), "version 'rand': there is standard and custom"),
        (
            lambda net: AutoAttack(net, version="custom").run_standard_evaluation(
                torch.rand(2, 1, 8, 8), torch.ones(2)
            ),
            "attacks_to_run is empty: name some",
        ),
        (lambda net: AutoAttack(net, is_tf_model=True), "is_tf_model: fastarat attacks models of PyTorch alone"),
        (lambda net: AutoAttack(3), "the model is a int: give a torch.nn.Module, or a function"),
        (lambda net: setattr(AutoAttack(net).apgd, "n_iter", 10), "apgd.n_iter cannot be set here, only n_restarts"),
        (lambda net: setattr(AutoAttack(net).apgd, "n_restarts", 0), "apgd.n_restarts is 0: give 1 or more"),
        (lambda net: benchmark(net, eps=0.1, to_disk=True), "to_disk needs a model_name"),
        (lambda net: benchmark(net, eps=0.1, data_dir="./data"), "data_dir ./data: give the path of the data set as"),
        (lambda net: AutoAttack(net, attacks_to_run=["square"]), "attacks_to_run with version 'standard'"),
        (lambda net: benchmark(net, threat_model="corruptions", eps=0.1), "threat_model 'corruptions'"),
        (lambda net: benchmark(net, dataset="digits"), "eps is not given, and Linf needs it"),
        (lambda net: benchmark(net, eps=0.1, x_test=torch.zeros(1, 1, 8, 8)), "x_test and y_test, or neither"),
        (lambda net: benchmark(net, dataset="imagenet", eps=0.1), "unknown data set 'imagenet'"),
        (
            lambda net: benchmark(net, -350, dataset="digits", eps=0.1),
            "n_examples is -350: give a whole number of 1 or more",
        ),
        (lambda net: benchmark(net, dataset="digits", eps=0.1, device="gpu:0"), "device 'gpu:0': give cpu, or a cuda"),
    ],
)
def test_what_there_is_not_is_one_line_that_says_what_there_is(net, call, says):
    with pytest.raises(UserError, match=says):
        call(net)
