"""A method's teacher is part of the run: found before it starts, saved with it, and needed no more."""

import shutil
from dataclasses import replace

import pytest
import torch
from fastarat_kernels.implementations import TRITON

from fastarat.common.distributed import World
from fastarat.common.errors import UserError
from fastarat.config import Config
from fastarat.config.method import ARRESTConfig
from fastarat.config.model import ModelConfig
from fastarat.config.recipes import recipe
from fastarat.config.training import ScheduleConfig
from fastarat.data.open import open_dataset
from fastarat.models.split_batch_norm import forward, forward_context
from fastarat.runs.checkpoint import load_checkpoint
from fastarat.training.build import build_training
from fastarat.training.train import train


def short(name: str, **settings: object) -> Config:
    config = recipe(name)
    evaluation = replace(config.evaluation, every_epochs=0, num_images=20, steps=1)
    return replace(config, epochs=1, batch=16, num_train_images=32, evaluation=evaluation, **settings)


def steps(config: Config) -> Config:
    return replace(config, attack=replace(config.attack, steps=1))


@pytest.fixture(scope="module")
def standard(tmp_path_factory):
    """A run of standard training."""
    torch.set_num_threads(1)
    return train(short("digits-standard"), tmp_path_factory.mktemp("runs") / "standard")


def test_arrest_goes_on_without_the_teachers_file_once_it_has_begun(standard, tmp_path):
    teacher = tmp_path / "standard"
    shutil.copytree(standard.path, teacher)
    config = steps(short("digits-arrest", method=ARRESTConfig(teacher=str(teacher))))
    run = train(config, tmp_path / "run")
    shutil.rmtree(teacher)
    train(replace(config, epochs=2), tmp_path / "run", resume=True)
    state, trained = load_checkpoint(run.checkpoint()), load_checkpoint(standard.checkpoint())["model"]
    assert state["epoch"] == 3 and int(state["method"]["num_steps"]) == 4
    for name, tensor in trained.items():
        assert torch.equal(state["method"][f"teacher.{name}"], tensor), name


def test_arrest_starts_from_the_teacher_which_it_keeps(standard, tmp_path):
    config = steps(short("digits-arrest", method=ARRESTConfig(teacher=str(standard.weights_file))))
    training = build_training(config, open_dataset("digits"), World(torch.device("cpu")))
    training.begin()
    net, method = training.parts.model, training.parts.method
    trained = load_checkpoint(standard.checkpoint())["model"]
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, trained[name]) and torch.equal(method.teacher.state_dict()[name], trained[name])
    assert len(training.parts.parameters) == len(list(net.parameters()))


@pytest.mark.parametrize(
    ("method", "model", "message"),
    [
        (ARRESTConfig(), "digits", "train one with: fastarat train digits-standard --out runs/standard, then give"),
        (ARRESTConfig(teacher="nowhere"), "digits", "nowhere does not exist"),
        (ARRESTConfig(teacher="{standard}"), "tiny", "has model digits, this run tiny"),
    ],
    ids=["missing", "not there", "another net"],
)
def test_a_teacher_that_cannot_be_used_is_named_before_there_is_a_run(standard, tmp_path, method, model, message):
    method = replace(method, teacher=method.teacher.replace("{standard}", str(standard.path)))
    config = short("digits-arrest", method=method, model=ModelConfig(model))
    with pytest.raises(UserError, match=message) as caught:
        train(config, tmp_path / "run")
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_lbgats_teacher_is_trained_along_and_a_resumed_run_ends_as_one_that_was_not_stopped(tmp_path):
    config = steps(replace(short("digits-lbgat"), epochs=2, schedule=ScheduleConfig("constant")))
    whole = train(config, tmp_path / "whole")
    train(replace(config, epochs=1), tmp_path / "parts")
    parts = train(config, tmp_path / "parts", resume=True)
    one, other = load_checkpoint(whole.checkpoint()), load_checkpoint(parts.checkpoint())
    for name in ("model", "method"):
        assert {key for key in one[name] if "linear.weight" in key}
        for key, tensor in one[name].items():
            assert torch.equal(tensor, other[name][key]), key


def test_a_teacher_computes_as_the_net_does():
    config = short("digits-lbgat")
    training = build_training(config, open_dataset("digits"), World(torch.device("cpu")), dtype="bf16", kernels=TRITON)
    net, teacher = training.parts.model, training.parts.method.teacher
    assert forward_context(teacher).kernels is forward_context(net).kernels is TRITON
    layouts = {p.is_contiguous(memory_format=torch.channels_last) for p in teacher.parameters() if p.dim() == 4}
    assert layouts == {True}
    assert forward(teacher, torch.rand(2, 1, 8, 8)).shape == (2, 10)
