"""The command line: settings become flags, and every mistake is one line that names the fix."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from fastarat import __version__
from fastarat.__main__ import main
from fastarat.commands.evaluate.arguments import EvalArguments
from fastarat.commands.parsing import flags, parse
from fastarat.commands.train import parse_arguments
from fastarat.common.errors import UserError
from fastarat.config import Config, recipes, to_json
from fastarat.config.attack import AttackConfig
from fastarat.config.method import ARATConfig
from fastarat.config.recipes import recipe


def parsed(*args: str) -> Config:
    return parse(Config, list(args), "fastarat train", Config())


def error(*args: str) -> str:
    with pytest.raises(UserError) as caught:
        parsed(*args)
    text = str(caught.value)
    assert "\n" not in text and "│" not in text and "fastarat train --help" in text
    return text


def test_flags_override_the_default_they_name_and_nothing_else():
    assert parsed() == Config()
    expected = replace(Config(), epochs=3, attack=AttackConfig(steps=7, eps_255=4), method=ARATConfig(gamma=1.5))
    assert parsed("--epochs", "3", "--attack.steps=7", "--attack.eps-255", "4", "--method.gamma", "1.5") == expected


def test_switches_and_lists_can_be_typed():
    config = parsed("--sync-bn", "--method.no-predictor", "--schedule.milestones", "5", "9", "--method.layers", "bn1")
    assert config.sync_bn and not config.method.predictor
    assert config.schedule.milestones == (5, 9) and config.method.layers == ("bn1",)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--epoch", "--epochs"),
        ("--attack.step", "--attack.steps"),
        ("--attack.eps", "--attack.eps-255"),
        ("--optimiser.learning-rate", "--optimizer.learning-rate"),
    ],
)
def test_an_unknown_option_is_answered_with_the_nearest_right_one(typed, meant):
    text = error(typed, "3")
    assert text.startswith(f"unknown option {typed}: see ") and meant in text.partition("did you mean ")[2]


def test_an_option_like_no_other_gets_no_guess():
    text = error("--zzzzzzzz", "3")
    assert text.startswith("unknown option --zzzzzzzz:") and "did you mean" not in text


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--epochs", "many"), "--epochs 'many': give a whole number"),
        (("--epochs", "1.5"), "--epochs '1.5': give a whole number"),
        (("--size", "float"), "--size 'float': give a whole number"),
        (("--attack.eps-255", "x"), "--attack.eps-255 'x': give a number"),
        (("--attack.eps-255", "8/255"), "--attack.eps-255 '8/255' is no number: give 8"),
        (("--optimizer.momentum", "1/255"), "--optimizer.momentum '1/255': give a number"),
        (("--schedule.milestones", "5", "x"), "--schedule.milestones '5', 'x': give numbers"),
        (("--augment.scale", "a", "1"), "--augment.scale 'a', '1': give numbers"),
        (("--epochs",), "missing value for argument '--epochs'"),
    ],
)
def test_a_value_of_the_wrong_type_is_named_with_its_option(args, says):
    assert error(*args).startswith(says)


@pytest.mark.parametrize("recipe", ["cifar10-resnet18-at", "cifar10-resnet18-mart", "digits-arat"])
def test_another_norm_takes_no_size_from_the_recipes(recipe):
    with pytest.raises(UserError, match="attack eps_255: l2 has no usual radius; give one"):
        parse_arguments([recipe, "--attack.norm", "l2"])
    config = parse_arguments([recipe, "--attack.norm=l2", "--attack.eps-255", "128"]).config.resolved()
    assert (config.eps_255, config.attack.step_255, config.evaluation.step_255) == (128, 32, 32)
    kept = parse_arguments([recipe, "--attack.norm", "linf"]).config.resolved()
    assert kept == recipes.recipe(recipe).resolved()


def test_from_a_run_steps_follow_another_radius(tmp_path):
    (tmp_path / "config.json").write_text(to_json(recipes.recipe("digits-at").resolved()))
    config = parse_arguments(["--from", str(tmp_path), "--attack.eps-255", "20"]).config.resolved()
    assert (config.attack.step_255, config.evaluation.step_255) == (5, 5)


def test_a_choice_that_is_not_offered_is_answered_with_those_that_are():
    text = error("--dtype", "fp8")
    assert "--dtype" in text and "fp8" in text
    assert all(name in text for name in ("fp32", "bf16", "fp16"))


def test_flags_are_listed_as_they_are_typed():
    listed = flags(Config())
    assert {"--epochs", "--sync-bn", "--attack.eps-255", "--method.stop-gradient"} <= set(listed)
    assert not any("_" in flag for flag in listed)


def test_help_goes_to_stdout_and_ends_well(capsys):
    with pytest.raises(SystemExit) as stop:
        parsed("--help")
    assert stop.value.code == 0
    assert "--attack.steps" in capsys.readouterr().out


@pytest.mark.timeout(60)
@pytest.mark.parametrize("columns", ["1", "4", "5", "39"])
def test_help_ends_in_a_terminal_of_a_few_columns(monkeypatch, capsys, columns):
    monkeypatch.setenv("COLUMNS", columns)
    with pytest.raises(SystemExit):
        parse(EvalArguments, ["--help"], "fastarat eval")
    assert "--attack" in capsys.readouterr().out and os.environ["COLUMNS"] == columns


@pytest.mark.parametrize("command", ["train", "tune", "submit"])
def test_usage_begins_with_the_recipe(capsys, command):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert capsys.readouterr().out.startswith(f"usage: fastarat {command} [RECIPE] [-h] [OPTIONS]\n")


@pytest.mark.parametrize("args", [["digits-trades"], ["--recipe", "digits-trades"], ["--recipe=digits-trades"]])
def test_a_recipe_is_named_by_the_first_word_or_by_its_flag(args):
    arguments = parse_arguments([*args, "--epochs", "3"])
    assert arguments.config == replace(recipe("digits-trades"), epochs=3)
    assert arguments.out is not None and arguments.out.match("runs/digits-trades-2*")


def test_a_run_taken_from_elsewhere_names_no_folder_outside_of_runs(tmp_path):
    (tmp_path / "config.json").write_text(to_json(replace(Config(), recipe="../../evil")))
    out = parse_arguments(["--from", str(tmp_path)]).out
    assert out is not None and out.parent == Path("runs")


@pytest.mark.parametrize("args", [[], ["--help"], ["-h"]])
def test_the_overview_names_every_command(capsys, args):
    assert main(args) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("train", "eval", "verify", "data", "recipes"))


def test_the_version_is_printed(capsys):
    assert main(["--version"]) == 0 and capsys.readouterr().out == f"{__version__}\n"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["trian"], "did you mean 'train'"),
        (["train", "digit-arat"], "did you mean 'digits-arat'"),
        (
            ["train", "digits-arat", "--epoch", "1"],
            "unknown option --epoch: see 'fastarat train --help'; did you mean --epochs",
        ),
        (["train", "digits-arat", "--attack.steps", "0"], "attack steps is 0"),
        (["train", "--epochs", "1", "digits-at"], "the recipe comes first: fastarat train digits-at …"),
        (
            ["train", "--recipe", "digit-arat"],
            "unknown recipe 'digit-arat': 'fastarat recipes' lists all; did you mean",
        ),
        (["tune", "--recipe", "../digits"], "unknown recipe '../digits'"),
        (["train", "digits-at", "--recipe", "digits-arat"], "digits-at and --recipe digits-arat are two recipes"),
        (["train", "--recipe"], "missing value for argument '--recipe'"),
        (["train", "--resume", "/somewhere"], "nothing to resume: /somewhere is no run"),
        (["train", "/some[where", "--resume"], "nothing to resume: there is no runs/_some_where-[0-9]*"),
        (["train", "--from", "somewhere"], "cannot read somewhere/config.json"),
        (["verify", "nothing.npz"], "nothing.npz does not exist"),
        (["recipes", "digits"], "unknown recipe 'digits'"),
    ],
)
def test_a_mistake_ends_with_code_2_and_one_line_on_stderr(capsys, args, says):
    assert main(args) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert captured.err.startswith("fastarat: error: ") and says in captured.err
