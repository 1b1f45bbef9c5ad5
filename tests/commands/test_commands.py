"""What every command prints, and what can be asked of `eval`."""

import io
import json
import os
import shutil
import subprocess
import sys

import pytest

from fastarat import __version__
from fastarat.__main__ import COMMANDS, main
from fastarat.commands import data
from fastarat.config import from_dict, recipes
from tests.helpers.command_line import ONE_EPOCH, finish, start

ASCII = {"PYTHONIOENCODING": "ascii"}
FEW = ("--num-images", "40", "--steps", "2")


def test_the_overview_names_every_command_with_an_example(fastarat):
    for args in ((), ("--help",), ("-h",)):
        result = fastarat(*args)
        assert result.code == 0 and all(f"  {name}" in result.out for name in COMMANDS)
        assert "for example: fastarat train" in result.out


def test_the_overview_names_the_commands_of_data():
    assert all(name in COMMANDS["data"] for name in data.COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(fastarat, command):
    result = fastarat(command, "--help")
    assert result.code == 0 and result.err == ""
    text = " ".join(result.out.split())
    assert f"For example: fastarat {command}" in text or (command == "data" and "fastarat data COMMAND" in text)


def test_help_names_the_nested_settings_with_their_defaults(fastarat):
    text = fastarat("train", "cifar10-resnet18-arat", "--help").out
    assert "--attack.steps" in text and "--method.gamma" in text and "default: 10" in " ".join(text.split())


def test_the_version_is_printed(fastarat):
    assert fastarat("--version").out == f"{__version__}\n"


def test_recipes_lists_all_and_json_says_the_same(fastarat):
    text = fastarat("recipes").out
    assert all(name in text for name in recipes.names())
    assert [row["name"] for row in fastarat("recipes", "--json").json] == recipes.names()


@pytest.mark.parametrize("name", recipes.names())
def test_a_recipe_shows_its_command_and_all_its_settings(fastarat, name):
    assert f"fastarat train {name}" in fastarat("recipes", name).out
    config = from_dict(fastarat("recipes", name, "--json").json, "recipe")
    assert config == recipes.recipe(name).resolved() and config.recipe == name


def test_doctor_finds_this_machine_able_to_train(fastarat):
    result = fastarat("doctor")
    assert result.code == 0 and "training step" in result.out and "broken" not in result.out
    rows = {row["subject"]: row["state"] for row in fastarat("doctor", "--json").json}
    assert rows["torch"] == rows["training step on cpu"] == rows["runs/"] == "ok" and rows["data"] == "missing"


def test_eval_prints_a_row_a_class_with_intervals(fastarat, trained):
    result = fastarat("eval", trained, *FEW)
    assert result.code == 0
    assert "on 40 test images of digits" in result.out and "pgd-2, linf, eps 45.9/255" in result.out
    assert all(f"│ {digit} " in result.out or f"| {digit} " in result.out for digit in range(10))


def test_eval_gives_json_to_a_program_and_to_a_file(fastarat, trained, tmp_path):
    result = fastarat("eval", trained, *FEW, "--json", "--out", "result.json").json
    assert json.loads((tmp_path / "result.json").read_text()) == result
    assert result["num_images"] == 40 and len(result["clean"]["per_class"]) == 10
    low, high = result["clean"]["interval_95"]
    assert low <= result["clean"]["percent"] <= high
    assert result["robust"]["percent"] <= result["clean"]["percent"]


def test_eval_measures_all_test_images_unless_fewer_are_asked_for(fastarat, trained):
    assert fastarat("eval", trained, "--attack", "none", "--json").json["num_images"] == 360


def test_clean_accuracy_alone_needs_no_attack(fastarat, trained):
    result = fastarat("eval", trained, "--attack", "none", "--json").json
    assert "robust" not in result and "attack" not in result


def test_more_restarts_and_steps_only_ever_break_more_images(fastarat, trained):
    few = ("eval", trained, "--num-images", "100", "--eps-255", "20", "--json")
    once, thrice = (fastarat(*few, "--steps", "2", "--restarts", n).json for n in (1, 3))
    assert thrice["robust"]["percent"] <= once["robust"]["percent"] and thrice["attack"]["restarts"] == 3
    longer = fastarat(*few, "--steps", "2", "--eps-255", "80").json
    assert longer["robust"]["percent"] < once["robust"]["percent"]


def test_an_attack_of_hardly_any_radius_breaks_nothing(fastarat, trained):
    result = fastarat("eval", trained, "--num-images", "100", "--steps", "2", "--eps-255", "1e-4", "--json").json
    assert result["robust"] == result["clean"]


def test_eval_measures_any_checkpoint_and_either_branch(fastarat, trained):
    def clean(*args):
        return fastarat("eval", trained, "--attack", "none", "--json", *args).json["clean"]["percent"]

    assert clean("--checkpoint", "last") == clean("--checkpoint", "8") == clean()
    assert clean("--checkpoint", "0") != clean() and clean("--branch", "clean") != clean()


def test_eval_measures_the_best_checkpoint_of_a_run_with_validation_images(fastarat):
    assert fastarat("train", *ONE_EPOCH, "--num-validation-images", "50", "--out", "run").code == 0
    best = fastarat("eval", "run", "--checkpoint", "best", *FEW, "--json").json
    deployed = fastarat("eval", "run", *FEW, "--json").json
    for other in (best, deployed):
        del other["seconds"], other["record"]
    assert best == deployed


def test_an_unfinished_run_is_measured_at_its_newest_checkpoint(fastarat, trained, tmp_path):
    copied = shutil.copytree(trained, tmp_path / "copied")
    (copied / "model.safetensors").unlink()
    result = fastarat("eval", copied, *FEW, "--json")
    assert "has not finished" in result.err
    assert result.json["clean"] == fastarat("eval", trained, *FEW, "--json").json["clean"]


@pytest.mark.parametrize("args", [("--help",), ("recipes",), ("recipes", "digits-arat", "--json"), ("train", "--help")])
def test_a_reader_that_closes_the_pipe_early_is_no_error(args):
    reading, writing = os.pipe()
    os.close(reading)
    process = start(*args, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    result = finish(process)
    assert result.code == 0 and result.err == ""


@pytest.mark.parametrize("args", [("--help",), ("train", "--help"), ("recipes",), ("doctor",)])
def test_a_terminal_without_unicode_is_no_error(args, monkeypatch):
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="ascii") for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    try:
        code = main(args)
    except SystemExit as stop:  # --help
        code = stop.code
    out, err = (stream.buffer.getvalue().decode("ascii") for stream in streams)
    assert code == 0 and len(out) > 500 and err == ""


def test_a_terminal_without_unicode_is_told_the_right_flag():
    result = finish(start("train", "--atack.steps", "3", environment=ASCII))
    assert result.code == 2 and "--attack.steps" in result.error
