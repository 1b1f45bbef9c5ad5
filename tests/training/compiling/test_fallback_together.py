"""Two processes that meet by gloo: what one of them cannot compile none of them runs, and both go another way."""

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from fastarat.common.choice_log import ChoiceLog
from fastarat.common.distributed import World
from fastarat.common.errors import WorkError
from fastarat.config.recipes import recipe
from fastarat.config.training import CompileMode
from fastarat.data.loading.choose import Opened
from fastarat.data.open import open_dataset
from fastarat.training.build import start_training, step_of
from fastarat.training.choices import Choices
from fastarat.training.compiling.captured import remembered
from fastarat.training.compiling.fallback import FallbackStep
from tests.helpers.groups import HOW
from tests.helpers.step_parts import nets_of_one_block

LIMIT = timedelta(minutes=2)
CONFIG = replace(recipe("digits-standard"), batch=16, procs=2)  # two graphs, which take little time to trace


def taken(rank: int, folder: Path, mode: CompileMode, fails: int | None, gains: tuple[float, float]) -> None:
    """A process takes a first step, compiled if it can be: `fails` is the rank whose compiler fails, and `gains` what
    each finds that compiling gains. It writes down how it went on, and whether it moved as the eager step does."""
    torch.set_num_threads(1)

    def compile_fx(graph, inputs, config_patches):
        if rank == fails:
            raise RuntimeError("no such instruction")
        return graph.forward

    with pytest.MonkeyPatch.context() as patched, nets_of_one_block():
        patched.setattr("torch._inductor.compile_fx.compile_fx", compile_fx)
        patched.setattr("fastarat.training.compiling.fallback.gain_in_turns", lambda *_: gains[rank])
        for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}.items():
            patched.setenv(name, value)
        patched.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder))
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2, timeout=LIMIT)
        control: Any = dist.new_group(backend="gloo", timeout=LIMIT)
        world = World(torch.device("cpu"), rank, 2, dist.group.WORLD, control)
        opened, log = Opened(open_dataset("digits"), "resident", ""), ChoiceLog(quiet=True)
        choices = Choices(compile="compile", unroll=False)
        config = replace(CONFIG, compile=mode)
        training, eager = start_training(config, opened, replace(choices, compile="eager"), world)
        training.controls.learning_rate.fill_(0.1)
        batch, put_back = next(training.loader.batches(1)), remembered(training.parts)
        eager(batch)
        expected = [parameter.clone() for parameter in training.parts.parameters]
        put_back()
        step = FallbackStep(training, step_of(training, choices), choices, log, has_to_gain=mode == "auto")
        end: dict[str, Any] = {}
        try:
            step(batch)
        except WorkError as error:
            end["error"] = str(error)
        same = all(map(torch.equal, training.parts.parameters, expected))
        end |= {"compile": step.choices.compile, "said": log.choices, "moved as eager": same}
        (folder / f"{rank}.json").write_text(json.dumps(end))


def both(folder: Path, mode: str, fails: int | None, gains: tuple[float, float] = (2.0, 2.0)) -> list[dict]:
    """How each of two processes went on."""
    others: Any = torch.multiprocessing.start_processes(
        taken, (folder, mode, fails, gains), nprocs=2, join=False, start_method=HOW
    )
    while not others.join():
        pass
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.no_cover  # dynamo traces
@pytest.mark.parametrize(("fails", "why"), [(None, []), (0, ["", "process 0: "]), (1, ["process 1: ", ""])])
def test_what_one_process_cannot_compile_none_of_them_runs(tmp_path, fails, why):
    ends = both(tmp_path, "auto", fails)
    assert all(end["moved as eager"] for end in ends)
    if fails is None:
        assert [end["said"] for end in ends] == [[], []] and {end["compile"] for end in ends} == {"compile"}
        return
    for end, of in zip(ends, why, strict=True):
        (choice,) = end["said"]
        assert end["compile"] == choice["value"] == "eager"
        assert choice["why"].startswith(f"{of}the step could not be compiled (no such instruction)")


@pytest.mark.no_cover  # dynamo traces
def test_what_the_first_process_finds_to_be_no_gain_all_give_up(tmp_path):
    ends = both(tmp_path, "auto", None, (0.5, 2.0))
    for end in ends:
        assert end["moved as eager"] and end["compile"] == "eager"
        assert [choice["why"] for choice in end["said"]] == [
            "a compiled step is 0.50 times as fast as an eager one here"
        ]


@pytest.mark.no_cover  # dynamo traces
def test_asked_for_by_name_the_end_of_one_ends_the_other(tmp_path):
    first, second = both(tmp_path, "compile", 1)
    assert "no such instruction" in second["error"] and first["error"].startswith("another process has ended")
