"""One training of a speedrun, in a process of its own, and what its model reaches."""

import json
import resource
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf
from pathlib import Path
from typing import Any

import torch

from bench.common.processes import Ending, compile_caches, environment, run_in_time
from bench.common.rows import Row, base_row, has, trained_by
from bench.speedrun.suites import Rung
from fastarat.commands.train import parse_arguments
from fastarat.common.console import progress
from fastarat.common.errors import UserError, WorkError
from fastarat.common.files import write_text
from fastarat.common.json_files import read_json
from fastarat.common.locks import is_locked
from fastarat.config import Config, load_config
from fastarat.config.evaluation import EvaluationSettings
from fastarat.data.images.dataset import Dataset, Images, shuffled
from fastarat.data.open import open_dataset
from fastarat.evaluation.evaluate import as_images, evaluate
from fastarat.runs.run import Run, settled
from fastarat.runs.weights import load_model

BYTECODE = "bytecode"
"""a folder beside the trainings: Python's modules are compiled once for all of them, as they are on any machine that
has started fastarat before"""
ALIKE = ("--evaluation.every-epochs", "0", "--no-report", "--log", "csv")
"""for every training: nobody watches on the way, and nothing but the model is made at the end"""
TIMES = "speedrun.json"
"""the file in a run's directory that says how long it took: written last, so that a training without is none"""
GRACE_S = 20


@dataclass(frozen=True)
class RaceTraining:
    """A training that is raced."""

    suite: str
    variant: str
    rung: Rung
    seed: int
    data: str
    runs: Path
    """where trainings go"""

    @property
    def name(self) -> str:
        """As people read it."""
        return f"{self.suite}, {self.variant}, seed {self.seed}"

    @property
    def out(self) -> Path:
        """Of the training."""
        name = "".join(c if c.isalnum() else "-" for c in self.variant).strip("-")
        return self.runs / f"{self.suite}-{name}-seed{self.seed}"

    @property
    def arguments(self) -> list[str]:
        """Of `fastarat train`, without the directory."""
        return [*self.rung, "--seed", str(self.seed), "--data", self.data, *ALIKE]

    @cached_property
    def config(self) -> Config:
        """What it trains by. Raises `UserError` as `fastarat train` does."""
        return parse_arguments(self.arguments).config

    @property
    def is_trained(self) -> bool:
        """Whether the training is there, and only has to be measured."""
        return (self.out / TIMES).exists()

    @property
    def times(self) -> dict[str, float]:
        """How long it took here, which tells its row from those of other machines. Raises `UserError` without."""
        return read_json(self.out / TIMES)

    @property
    def begun_file(self) -> Path:
        """A file that is there once a race has begun this training: what lies at `out` then is the race's own."""
        return self.out.with_suffix(".begun")

    def check(self) -> None:
        """Raise `UserError` for settings that cannot be trained, and where what lies at `out` is no race's, is at work,
        or has come to its end by other settings."""
        config, kept, fix = settled(self.config), self.out / "config.json", "move it away, or give another --runs"
        if self.out.exists() and not (self.is_trained or self.begun_file.exists()):
            raise UserError(f"{self.out} was there before any race: {fix}")
        if self.is_trained and kept.exists() and settled(load_config(kept)) != config:
            raise UserError(f"{self.out} is a training by other settings: {fix}")
        if is_locked(Run(self.out).lock_file):
            raise UserError(f"{self.out} is being trained by another process: wait for it, or give another --runs")

    def is_of(self, row: Row) -> bool:
        """Whether a row is of a training by these settings, wherever its images lay."""
        return has(row, {}, config=replace(self.config, data=row["config"]["data"]))


def train(training: RaceTraining, limit_s: float = inf) -> Ending:
    """Train in a fresh process that finds nothing compiled, and write down how long it took.

    What an earlier training left that did not come to its end goes first: it cannot go on, for its time counts from the
    start of the process to the last writing of the model.
    """
    training.check()
    shutil.rmtree(training.out, ignore_errors=True)
    training.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(training.begun_file, "")
    command = [sys.executable, "-m", "fastarat", "train", *training.arguments, "--out", str(training.out)]
    with tempfile.TemporaryDirectory(prefix="fastarat-speedrun-") as caches:
        variables = _variables(training.runs, Path(caches))
        started, before = time.time(), _cpu_seconds()
        log = training.out.with_suffix(".log")
        ending = run_in_time(command, log, limit_s, grace_s=GRACE_S, variables=variables)
        cpu_seconds = _cpu_seconds() - before
    weights = Run(training.out).weights_file
    if ending.code == 0 and weights.exists():
        seconds = {
            "seconds": round(weights.stat().st_mtime - started, 2),
            "process_seconds": round(ending.seconds, 2),
            "cpu_seconds": round(cpu_seconds, 2),
        }
        write_text(training.out / TIMES, json.dumps(seconds) + "\n")
    return ending


def warm_up(runs: Path) -> None:
    """Start fastarat once, so that no training compiles Python's modules, or is the first to read PyTorch's files."""
    with tempfile.TemporaryDirectory(prefix="fastarat-speedrun-") as folder:
        flags = ("--epochs", "1", "--num-train-images", "64", "--attack.steps", "1", "--evaluation.num-images", "20")
        command = [sys.executable, "-m", "fastarat", "train", "digits-at", *flags, *ALIKE, "--out", f"{folder}/run"]
        ending = run_in_time(
            command, Path(folder, "log"), inf, grace_s=GRACE_S, variables=_variables(runs, Path(folder))
        )
        if ending.code:
            raise WorkError(f"fastarat does not train here: {ending.last_line}")


def _variables(runs: Path, caches: Path) -> dict[str, str]:
    """The environment of a training."""
    # Set to nothing, Python writes bytecode.
    return environment(**compile_caches(caches), PYTHONPYCACHEPREFIX=str(runs / BYTECODE), PYTHONDONTWRITEBYTECODE="")


def _cpu_seconds() -> float:
    """Of all processes that this one started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def failed_row(training: RaceTraining, error: str) -> Row:
    """The row of a training that gave no model."""
    return {**_base(training, training.config), "correct": False, "error": error}


def measured_row(training: RaceTraining, num_images: int, num_autoattack: int) -> Row:
    """The row of a training that is there: what its model reaches on the first `num_images` test images of a random
    order, and under AutoAttack on the first `num_autoattack` of those. An attack that was stopped goes on."""
    config, run = training.config, Run(training.out)
    dataset = open_dataset(config.data)
    images = shuffled(dataset.decoded_test, num_images, seed=0)
    lines = [line for line in run.metrics() if "train" in line]
    sessions = run.sessions()
    session = sessions[-1]
    accuracies = reached(run, dataset, images, num_autoattack, name=training.name)
    return {
        **_base(training, config),
        "threads": session["threads"],
        "trained_by": trained_by(sessions),
        "correct": accuracies["autoattack"] <= 100 and all(line["train"]["loss"] < inf for line in lines),
        "model": config.model.name,
        "epochs": config.epochs,
        **{name: session[name] for name in ("dtype", "compile", "kernels")},
        **training.times,
        "training_seconds": lines[-1]["seconds"],
        "compile_seconds": sum(line.get("compile_seconds", 0.0) for line in lines),
        **accuracies,
    }


def _base(training: RaceTraining, config: Config) -> Row:
    device = "cuda" if torch.cuda.is_available() and config.device != "cpu" else "cpu"
    names = {"suite": training.suite, "variant": training.variant, "recipe": config.recipe, "seed": training.seed}
    return {**base_row("speedrun", config, Path(config.data).name, device=device), **names}


def reached(
    run: Run, dataset: Dataset, images: Images, num_autoattack: int, *, name: str, attack: str = "autoattack"
) -> dict[str, Any]:
    """The deployed model's clean accuracy on these images, and what AutoAttack leaves of the first `num_autoattack`."""
    model, description = load_model(run.weights_file)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    x, y = as_images(images, dataset.max_value)
    ball = {"norm": description.norm, "eps": description.eps_255 / 255}
    clean = evaluate(model, x, y, EvaluationSettings(attack="none", **ball))
    num_autoattack = min(num_autoattack, len(y))
    state = run.path / f"{attack.replace(',', '-')}-{len(y)}-{num_autoattack}"
    with progress(f"AutoAttack on {name}", num_autoattack) as advance:
        settings = EvaluationSettings(attack=attack, **ball)
        attacked = evaluate(model, x[:num_autoattack], y[:num_autoattack], settings, state=state, advance=advance)
    return {
        "clean": round(clean.clean, 3),
        "num_images": len(y),
        "autoattack": round(attacked.robust, 3),
        "num_autoattack": num_autoattack,
        "warnings": list(attacked.warnings),
        "seconds_autoattack": round(sum(attacked.seconds.values()), 1),
    }
