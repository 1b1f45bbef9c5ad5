"""What `auto` chose gives way to the next best with one line, and trains as the eager step; what was named does not."""

import json
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fastarat_kernels.implementations import TRITON
from fastarat_kernels.launch import UnsupportedInput
from torch._dynamo.exc import TorchDynamoException

from fastarat.__main__ import main
from fastarat.training.build import IMPLEMENTATIONS
from fastarat.training.choices import Choices, choose
from fastarat.training.compiling.compile_times import NAME
from tests.helpers.command_line import ONE_EPOCH, Result, assert_same, metrics, newest, state_of
from tests.helpers.step_parts import nets_of_one_block
from tests.helpers.streams import pretend_streams

FLAGS = ("digits-arat", *ONE_EPOCH, "--device", "cpu", "--dtype", "fp32", "--compile", "auto")


@pytest.fixture(autouse=True, scope="module")
def small_nets():
    with nets_of_one_block():
        yield


@pytest.fixture(scope="module")
def eager(tmp_path_factory) -> Path:
    """The run of the eager step with PyTorch's kernels."""
    run = tmp_path_factory.mktemp("eager") / "run"
    assert main(["train", *FLAGS, "--compile", "eager", "--kernels", "pytorch", "--out", str(run)]) == 0
    return run


@pytest.fixture
def machine(monkeypatch, tmp_path, capsys) -> Callable[..., Result]:
    """`machine(mode, fails, *flags)` trains where `auto` chooses `mode` and Triton's kernels, and these parts fail when
    the weights have moved, by `error` if it is given; a "compiler later" compiles what is captured."""
    pretend_streams(monkeypatch)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))

    def run(mode: str, fails: tuple[str, ...], *flags: str, error: Exception | None = None) -> Result:
        built = []

        @contextmanager
        def no_capture(*_, **__):
            yield
            raise error or RuntimeError("operation not permitted when stream is capturing\nand more")

        def refuse(*_, **__):
            raise error or UnsupportedInput("x is not dense")

        def compiled(function, **_):
            built.append(function)
            broken = "compiler" in fails or ("compiler later" in fails and len(built) > 1)

            def step(*args):
                metrics = function(*args)
                if "values" in fails:
                    args[0].parameters[0].data.add_(1)
                if broken:
                    failure = TorchDynamoException("no such instruction")
                    failure.inner_exception = error or failure  # type: ignore[attr-defined]
                    raise failure
                return metrics

            return step

        monkeypatch.setattr(torch, "compile", compiled)
        monkeypatch.setattr(torch.cuda, "graph", no_capture)
        if "kernel" in fails:
            monkeypatch.setitem(IMPLEMENTATIONS, "triton", replace(TRITON, pgd_step=refuse))
        monkeypatch.setattr("fastarat.training.compiling.fallback.gain_in_turns", lambda *_: 0.5)
        choices = Choices("cpu", "fp32", "triton", mode)  # type: ignore[arg-type]
        if "gain" in fails:  # it is chosen by timed steps
            choices = replace(choices, compile="eager")
            monkeypatch.setattr("fastarat.training.train.faster_mode", lambda *_: mode)
        monkeypatch.setattr("fastarat.training.train.choose", lambda *_: choices)
        capsys.readouterr()
        code = main(["train", *FLAGS, *flags, "--out", str(tmp_path / "run")])
        return Result(code, *capsys.readouterr())

    return run


def assert_same_training(ours: Path, theirs: Path) -> None:
    assert [line["train"] for line in metrics(ours)] == [line["train"] for line in metrics(theirs)]
    mine, other = state_of(newest(ours)), state_of(newest(theirs))
    for part in ("model", "method", "momenta", "totals"):
        assert_same(mine[part], other[part], part)


CASES = {
    "capture": ("graph", ("capture",), ("compile", "pytorch"), ["compile: compile (the step could not be captured"]),
    "compiler": (
        "graph",
        ("compiler",),
        ("eager", "pytorch"),
        ["compile: eager (the step could not be compiled"],
    ),
    "both": (
        *("graph", ("capture", "compiler later"), ("eager", "pytorch")),
        ["compile: compile (the step could not be captured", "compile: eager (the step could not be compiled"],
    ),
    "values": (
        "compile",
        ("values",),
        ("eager", "pytorch"),
        ["compile: eager (the compiled step is not right (how far"],
    ),
    "gain": (
        "compile",
        ("gain",),
        ("eager", "pytorch"),
        ["compile: eager (a compiled step is 0.50 times as fast as an eager one here)"],
    ),
    "kernel": ("compile", ("kernel",), ("compile", "pytorch"), ["kernels: pytorch (x is not dense)"]),
}


@pytest.mark.parametrize(("mode", "fails", "takes", "lines"), CASES.values(), ids=CASES)
def test_a_better_way_that_fails_gives_way_with_a_line_and_every_bit_is_the_eager_step_s(
    machine, eager, tmp_path, mode, fails, takes, lines
):
    result = machine(mode, fails)
    assert result.code == 0, result.err
    said = [line for line in result.err.splitlines() if line.startswith(("compile: ", "kernels: pytorch (x"))]
    assert len(said) == len(lines) and all(map(str.startswith, said, lines)), result.err
    assert_same_training(tmp_path / "run", eager)
    (session,) = json.loads((tmp_path / "run" / "record.json").read_text())["sessions"]
    assert (session["compile"], session["kernels"]) == takes
    recorded = [f"{choice['what']}: {choice['value']} ({choice['why']})" for choice in session["choices"]]
    assert set(said) <= set(recorded)
    assert ("compiled for images" in result.err) == (takes[0] != "eager")


def test_a_tuned_run_that_fell_back_goes_on_as_it_has_run(machine, monkeypatch, tmp_path, capsys):
    form = Choices("cpu", "fp32", "pytorch", "compile", unroll=False, threads=1)
    monkeypatch.setattr("fastarat.training.train.tuned_choices", lambda *_: form)
    assert machine("compile", ("compiler",)).code == 0
    monkeypatch.setattr("fastarat.training.train.choose", choose)
    assert main(["train", "--resume", str(tmp_path / "run"), "--epochs", "2"]) == 0
    said = capsys.readouterr().err
    assert "compile: eager (as the run has it so far)" in said and "threads: 1 (as the run has it so far)" in said
    *_, session = json.loads((tmp_path / "run" / "record.json").read_text())["sessions"]
    assert (session["compile"], session["threads_chosen"], session["unroll"]) == ("eager", 1, False)


def test_a_step_that_was_no_faster_compiled_is_not_compiled_again(machine, tmp_path):
    assert "compile: eager (a compiled step is" in machine("compile", ("gain",)).err
    kept = json.loads((tmp_path / "cache" / NAME).read_text())
    assert [entry["gain"] for entry in kept.values()] == [0.5]


@pytest.mark.parametrize(
    ("mode", "fails", "flags", "words"),
    [
        ("graph", ("capture",), ("--compile", "graph"), "operation not permitted"),
        ("compile", ("compiler",), ("--compile", "compile"), "no such instruction"),
        ("compile", ("values",), ("--compile", "compile"), "the weights moved is off by"),
        ("compile", ("kernel",), ("--kernels", "triton", "--compile", "compile"), "x is not dense"),
    ],
)
def test_what_was_asked_for_by_name_and_fails_ends_the_run_with_one_line(machine, mode, fails, flags, words):
    result = machine(mode, fails, *flags)
    assert result.code == 1 and words in result.error and "--kernels pytorch" in result.error


@pytest.mark.parametrize(("mode", "part"), [("graph", "capture"), ("compile", "compiler"), ("compile", "kernel")])
def test_where_memory_runs_out_a_slower_way_is_none_that_helps_and_one_line_says_what_does(machine, mode, part):
    result = machine(mode, (part,), error=RuntimeError("CUDA error: out of memory\nand more"))
    assert result.code == 1 and result.error.startswith("out of GPU memory at batch 16: ")
    assert "compile: " not in result.err and "kernels: pytorch" not in result.err
