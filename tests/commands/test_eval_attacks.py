"""`fastarat eval --attack …`: every attack, any model, and what goes on after an interruption."""

import errno
import io
import json
import os
import shutil
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fastarat import __main__ as command_line
from fastarat.commands.evaluate.arguments import EvalArguments
from fastarat.commands.evaluate.report import save
from fastarat.commands.evaluate.work import Work
from fastarat.common.distributed import World
from fastarat.evaluation.autoattack.state import State
from tests.helpers.attacks import shorten
from tests.helpers.command_line import finish, start

ALONE = World(torch.device("cpu"))
FEW = ("--num-images", "30", "--eps-255", "20", "--batch", "10")

NETS = """
import torch
from torch import nn
def layers():
    torch.manual_seed(0)
    return [nn.Flatten(), nn.Linear(64, 10)]
def net():
    return nn.Sequential(*layers())
class Talks(nn.Module):
    def forward(self, x):
        print("a net may print")
        return x
def talking():
    return nn.Sequential(Talks(), *layers())
def constant():
    return Constant()
def flat():
    return nn.Sequential(nn.Flatten(), nn.BatchNorm2d(64))
class Constant(nn.Module):
    def forward(self, x):
        return torch.eye(10)[torch.zeros(len(x)).long()]
def seven():
    return nn.Sequential(*layers(), nn.Linear(10, 7))
class Rounds(nn.Module):
    def forward(self, x):
        return (x * 4).round() / 4
class Root(nn.Module):
    def forward(self, x):
        return x + (x - x.detach()).pow(2).sum((1, 2, 3), keepdim=True).sqrt()
def rooted():
    return nn.Sequential(Root(), *layers())
def rounds():
    return nn.Sequential(Rounds(), *layers())
class Noise(nn.Module):
    def forward(self, x):
        return x + 0.1 * torch.randn_like(x)
def noisy():
    return nn.Sequential(Noise(), *layers())
class Loud(nn.Module):
    def forward(self, z):
        return 1e4 * z
def loud():
    return nn.Sequential(*layers(), Loud())
"""


@pytest.fixture
def short(monkeypatch):
    """The standard's attacks, cut down to a fraction of their work."""
    few = {"steps": 2}
    shorten(monkeypatch, {"apgd-ce": {"steps": 3}, "apgd-t": few, "fab-t": few, "square": {"queries": 30}})


@pytest.fixture
def nets(working_directory):
    """A module of nets in the working directory."""
    (working_directory / "nets_to_eval.py").write_text(NETS)


def test_autoattack_prints_every_attack_and_leaves_no_state_beside_the_model(fastarat, trained, short, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    before = {path.name for path in run.iterdir()}
    result = fastarat("eval", run, *FEW, "--attack", "autoattack")
    assert result.code == 0 and "autoattack, linf, eps 20/255" in result.out
    assert all(word in result.out for word in ("clean", "apgd-ce", "apgd-t", "fab-t", "square", "seconds"))
    assert {path.name for path in run.iterdir()} == before | {"outcomes"}


def test_a_list_of_attacks_is_run_in_its_order_and_told_as_json(fastarat, trained, short):
    flags = ("--attack", "square,cw,apgd-t", "--targets", "3", "--dtype", "bf16", "--json")
    result = fastarat("eval", trained, *FEW, *flags).json
    assert list(result["counts"]) == ["clean", "square", "cw", "apgd-t"] and result["complete"]
    assert result["robust"]["percent"] == result["after"]["apgd-t"] <= result["clean"]["percent"]
    assert "3 targets instead of 9" in result["options"] and any("bf16" in option for option in result["options"])
    assert result["record"]["seed"] == 0 and result["record"]["device"] and result["record"]["torch"]
    assert result["attack"]["attacks"] == ["square", "cw", "apgd-t"] and result["attack"]["targets"] == 3


def test_what_is_not_attackable_is_counted_in_the_table_in_json_and_in_a_warning(fastarat, nets, short):
    asked = ("eval", "nets_to_eval:rooted", "--data", "digits", *FEW, "--attack", "pgd,apgd-ce")
    told, result = fastarat(*asked), fastarat(*asked, "--json").json
    counts, right = result["not_attackable"], result["counts"]
    assert counts["pgd"] == right["pgd"] and counts["apgd-ce"] == right["apgd-ce"] > 0
    assert (
        told.code == 0 and "not attackable" in told.out and "were not attackable by pgd" in " ".join(told.out.split())
    )


def test_pyautoattacks_own_attacks_run_on_the_same_images(fastarat, trained):
    pytest.importorskip("pyautoattack")
    few = ("--num-images", "20", "--eps-255", "20", "--attack", "apgd-ce", "--json")
    theirs, ours = (fastarat("eval", trained, *few, "--engine", engine).json for engine in ("pyautoattack", "fast"))
    assert theirs["options"] == ["attacks of pyautoattack"] and theirs["attack"]["engine"] == "pyautoattack"
    assert theirs["clean"] == ours["clean"] and abs(theirs["counts"]["apgd-ce"] - ours["counts"]["apgd-ce"]) <= 2


def test_the_margin_is_the_attack_cw(fastarat, trained):
    named, asked = (
        fastarat("eval", trained, *FEW, *flags, "--json").json
        for flags in (("--attack", "cw"), ("--objective", "margin"))
    )
    assert named["robust"] == asked["robust"] and asked["attack"]["name"] == "cw-20"


def test_adversarial_images_are_saved_as_plain_arrays(fastarat, trained):
    result = fastarat("eval", trained, *FEW, "--attack", "pgd", "--save", "broken.npz", "--json").json
    with np.load("broken.npz", allow_pickle=False) as saved:
        arrays = dict(saved)
    num_broken = result["counts"]["clean"] - result["counts"]["pgd"]
    assert {len(array) for array in arrays.values()} == {num_broken} and num_broken > 0
    assert np.abs(arrays["x_adv"] - arrays["x"]).max() <= 20 / 255 + 1e-6


def test_a_function_of_ones_own_is_evaluated(fastarat, nets, short):
    asked = ("eval", "nets_to_eval:talking", "--data", "digits", *FEW, "--attack", "apgd-ce,square", "--json")
    result = fastarat(*asked)
    assert "a net may print" in result.err  # and not where a program reads
    assert result.code == 0 and result.json["num_images"] == 30 and result.json["model"] == "nets_to_eval:talking"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("loud", "began with a gradient of exactly zero"),
        ("rounds", "Square, which needs no gradient"),
        ("noisy", "randomised"),
    ],
)
def test_a_model_that_masks_its_gradient_is_warned_of(fastarat, nets, short, name, says):
    more = ("--num-images", "100", "--eps-255", "60", "--attack", "apgd-ce,square")
    result = fastarat("eval", f"nets_to_eval:{name}", "--data", "digits", *more)
    assert result.code == 0 and "warning: " in result.out and says in result.out


def test_saved_images_are_checked_once_more_and_what_does_not_break_the_model_is_left_out(trained, capsys):
    work = Work(EvalArguments(str(trained), num_images=30, eps_255=20, steps=2, state=Path("state")), ALONE)
    evaluation = work.evaluate()
    clean = work.images[evaluation.rows]
    x_adv = torch.cat([clean[:1], evaluation.x_adv[1:2] + 0.5, evaluation.x_adv[2:]])
    save(Path("some.npz"), work, replace(evaluation, x_adv=x_adv))
    assert f"2 of {len(x_adv)} adversarial images do not break the model once more: left out" in capsys.readouterr().err
    with np.load("some.npz") as saved:
        assert saved["rows"].tolist() == evaluation.rows[2:].tolist()
        assert np.array_equal(saved["x_adv"], x_adv[2:].numpy()) and np.array_equal(saved["x"], clean[2:].numpy())


def test_a_budget_ends_it_with_code_1_and_the_same_command_goes_on(fastarat, trained, short):
    command = ("eval", trained, *FEW, "--attack", "apgd-ce,square", "--json")
    whole = fastarat(*command).json
    first = fastarat(*command, "--budget", "1e-9")
    assert first.code == 1 and "apgd-ce has done 1 of" in first.error and "the same command goes on" in first.error
    assert not first.json["complete"] and first.json["stopped"]
    second = fastarat(*command)
    assert second.code == 0 and "going on from" in second.err and "1 batch is done" in second.err
    for result in (whole, second.json):
        assert result["complete"]
    assert second.json["robust"] == whole["robust"] and second.json["counts"] == whole["counts"]
    assert not (trained / "evaluations").exists()


def test_functions_of_the_same_weights_have_a_state_each(fastarat, nets, short):
    def command(name: str) -> tuple[str, ...]:
        return ("eval", f"nets_to_eval:{name}", "--data", "digits", *FEW, "--attack", "apgd-ce,square", "--json")

    assert fastarat(*command("net"), "--budget", "1e-9").code == 1
    other = fastarat(*command("loud"))
    assert other.code == 0 and "going on" not in other.err
    assert "1 batch is done" in fastarat(*command("net")).err and not Path("evaluations").exists()


def test_what_is_done_is_kept_until_the_result_is_written(trained, short, tmp_path, monkeypatch):
    class Full(io.StringIO):
        """Takes all but the last line."""

        def flush(self):
            if "eps 20/255" in self.getvalue():
                raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Full())
        out = tmp_path / "result.json"
        assert command_line.main(["eval", str(trained), *FEW, "--attack", "apgd-ce", "--out", str(out)]) == 1
    assert json.loads(out.read_text())["complete"], "a reader that has gone away costs no file"
    [state] = (trained / "evaluations").iterdir()
    assert list(state.glob("1-apgd-ce-*"))
    shutil.rmtree(trained / "evaluations")


@pytest.mark.parametrize("there", [True, False], ids=["another is deployed", "none was yet"])
def test_what_is_deployed_during_an_evaluation_does_not_get_its_outcomes(trained, tmp_path, capsys, there):
    run = shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("outcomes"))
    weights = run / "model.safetensors"
    deployed = weights.read_bytes()
    if not there:
        weights.unlink()
    work = Work(EvalArguments(str(run), steps=1, num_images=10, eps_255=20), ALONE)
    weights.write_bytes(deployed + b" " * there)
    work.finish(work.evaluate())
    assert not (run / "outcomes").exists()
    assert ("deploys other weights than were evaluated" in capsys.readouterr().err) == there


def test_a_state_of_ones_own_is_kept_and_refused_for_another_evaluation(fastarat, trained, short):
    command = ("eval", trained, *FEW, "--attack", "apgd-ce", "--state", "state", "--json")
    first, again = fastarat(*command), fastarat(*command)
    assert again.json["seconds"] == first.json["seconds"] and "going on from state" in again.err
    other = fastarat(*command, "--seed", "1")
    assert other.code == 2 and "belongs to another evaluation" in other.error


def test_where_nothing_can_be_kept_beside_the_model_it_says_so_and_goes_on(fastarat, trained, tmp_path):
    copied = tmp_path / "model.safetensors"
    copied.write_bytes((trained / "model.safetensors").read_bytes())
    (tmp_path / "evaluations").touch()
    result = fastarat("eval", copied, *FEW, "--steps", "1")
    assert result.code == 0 and "--state DIR gives it a place" in result.err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("nets_to_eval:net",), ("--data", "name a data set")),
        (("nets_to_eval:ned", "--data", "digits"), ("unknown function", "'net'")),
        (("nowhere_at_all:net", "--data", "digits"), ("there is no module 'nowhere_at_all'",)),
        (("nets_to_eval:net", "--data", "digits", "--branch", "clean"), ("--branch need a run's directory",)),
        (("nets_to_eval:net", "--data", "digits", "--norm", "l2"), ("--eps-255",)),
        (("nets_to_eval:net", "--data", "digits", "--eps-255", "300"), ("--eps-255 is 300", "255 at most")),
        (("nets_to_eval:seven", "--data", "digits"), ("returns [2, 7] for 2 images, not logits [2, 10]",)),
        (("nowhere",), ("nowhere does not exist", "MODULE:FUNCTION")),
        (("nets_to_eval:net", "--data", "digits", "--attack", "pgd,pgd"), ("pgd is named twice",)),
        (("nets_to_eval:net", "--data", "digits", "--targets", "0"), ("--targets 0",)),
        (("nets_to_eval:net", "--data", "digits", "--targets", "10", "--attack", "fab-t"), ("give 9 targets",)),
        (("nets_to_eval:net", "--data", "digits", "--budget", "0"), ("--budget 0",)),
        (("nets_to_eval:net", "--data", "digits", "--save", "x.txt"), (".npz",)),
        (("nets_to_eval:net", "--data", "digits", "--state", "nets_to_eval.py"), ("cannot use the directory",)),
        (("nets_to_eval:net", "--data", "digits", "--engine", "pyautoattack"), ("has no pgd",)),
        (("nets_to_eval:constant", "--data", "digits"), ("has no gradient by its images", "square")),
        (("nets_to_eval:flat", "--data", "digits"), ("ValueError: expected 4D input",)),
    ],
    ids=lambda args: " ".join(args),
)
def test_bad_input_is_one_line(fastarat, nets, args, words):
    result = fastarat("eval", *args)
    assert result.code == 2 and all(word in result.error for word in words), result.error
    assert not Path("evaluations").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_a_line_that_says_how_it_goes_on(fastarat, trained, short, monkeypatch, number):
    def interrupted(state: State, file: str, tensors: dict[str, torch.Tensor]) -> None:
        save_state(state, file, tensors)
        if file.startswith("1-square-"):
            os.kill(os.getpid(), number)

    save_state = State.save
    monkeypatch.setattr(State, "save", interrupted)
    args = ("eval", trained, "--num-images", "20", "--batch", "10", "--attack", "square", "--state", "state")
    result = fastarat(*args)
    assert result.code == 128 + number and "interrupted; what is done is kept in state" in result.err
    assert len(list(Path("state").glob("1-square-*"))) == 1


def wait(state: Path, pattern: str, process) -> None:
    """Wait until the evaluation has a file of this pattern; the process must still run."""
    end = time.monotonic() + 300
    while not list(state.glob(pattern)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.slow
def test_killed_in_each_attack_and_resumed_it_ends_in_the_same_flags(fastarat, trained):
    command = (
        "eval",
        trained,
        "--num-images",
        "16",
        "--batch",
        "4",
        "--eps-255",
        "8",
        "--attack",
        "autoattack",
        "--json",
    )
    whole = finish(start(*command, "--save", "whole.npz"), timeout=600).json
    state = Path("state")
    for number, name in enumerate(("apgd-ce", "apgd-t", "fab-t", "square"), 1):
        process = start(*command, "--state", state)
        # One batch of this attack is done, another one has begun.
        wait(state, f"{number}-{name}-00000*", process)
        process.kill()
        finish(process)
        assert not list(state.glob(f"{number + 1}-*")), "it was killed in a later attack"
    result = finish(start(*command, "--state", state, "--save", "killed.npz"), timeout=600)
    assert "going on from state" in result.err
    assert result.json["counts"] == whole["counts"] and result.json["robust"] == whole["robust"]
    with np.load("whole.npz") as ours, np.load("killed.npz") as theirs:
        assert all(np.array_equal(ours[key], theirs[key]) for key in ours)
    assert json.loads((state / "autoattack.json").read_text())["batch"] == 4
