"""One row of the robustness benchmark: train, or take the training that is there, and measure what it deploys."""

import time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import nn

from bench.common.rows import base_row, trained_by
from bench.robustness.suites import SuiteTraining
from fastarat.analysis import analyze
from fastarat.common.console import progress
from fastarat.common.distributed import World
from fastarat.common.errors import UserError
from fastarat.config import Config, load_config
from fastarat.config.attack import AttackConfig
from fastarat.config.evaluation import EvaluationDtype, EvaluationSettings
from fastarat.data.images.classes import in_order_of
from fastarat.data.images.dataset import Dataset, Images, shuffled
from fastarat.data.open import open_dataset
from fastarat.evaluation.accuracies import Accuracy, accuracies
from fastarat.evaluation.evaluate import as_images, evaluate
from fastarat.runs.run import Run, settled
from fastarat.runs.weights import Description, load_model
from fastarat.training.train import train

PGD_STEPS = 20


def measure(
    suite: str,
    entry: SuiteTraining,
    num_images: int | None,
    *,
    num_autoattack: int | None,
    analysed: bool = False,
    search: EvaluationDtype = "fp32",
) -> dict[str, Any]:
    """Train (or go on training) and attack what it deploys: the row of `suite`.

    `num_images` test images (None: all) tell the clean accuracy and PGD-20's; AutoAttack gets the first
    `num_autoattack` of them (0: there is none), searching in the number format `search`. `analysed`: see
    `fastarat.analysis`. Raises `UserError` if the place of the training holds another one.
    """
    config, out = entry.config, entry.out
    begun = (out / "config.json").exists()
    if begun and settled(load_config(out / "config.json")) != settled(config):
        raise UserError(f"{out} is a run with other settings: move it away, or give another --runs")
    run = Run(out) if begun and is_finished(out, config) else train(config, out, resume=begun)
    device = torch.device("cuda" if torch.cuda.is_available() and config.device != "cpu" else "cpu")
    model, description = load_model(run.weights_file)
    # As it was trained: else cuDNN converts the filters in each pass.
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    dataset = in_order_of(open_dataset(config.data), description.classes, str(out), "train it anew")
    images = shuffled(dataset.decoded_test, len(dataset.test.labels) if num_images is None else num_images, seed=0)
    started = time.monotonic()
    attacked = _Attacked(run, entry.name, dataset, images, model, description)
    clean, robust = attacked.pgd20(device)
    seconds = time.monotonic() - started
    lines, sessions = [line for line in run.metrics() if "train" in line], run.sessions()
    return {
        **base_row("robustness", config, dataset.name, device=device.type),
        "threads": sessions[-1]["threads"],
        "trained_by": trained_by(sessions),
        "correct": robust.percent <= clean.percent
        and not robust.not_attackable
        and all(line["train"]["loss"] < float("inf") for line in lines),
        "suite": suite,
        "method": entry.method,
        "fidelity": config.fidelity,
        "model": description.model,
        "seed": config.seed,
        "epochs": config.epochs,
        "checkpoint": "best" if config.num_validation_images else "last",
        "num_images": len(images.labels),
        "clean": round(clean.percent, 3),
        "pgd20": round(robust.percent, 3),
        "pgd20_not_attackable": robust.not_attackable,
        **attacked.autoattack(num_autoattack, search),
        **_minutes(lines, seconds),
        "images_per_s": _speed(lines),
        "analysis": _analysis(out, device, entry.name) if analysed else None,
    }


def _speed(lines: list[dict[str, Any]]) -> float | None:
    """The mean of the epochs; None where each was only closed, after a stop at its last step."""
    speeds = [line["images_per_s"] for line in lines if "images_per_s" in line]
    return round(mean(speeds), 1) if speeds else None


def is_finished(out: Path, config: Config) -> bool:
    """Whether the training has come to its end: its last epoch is written, and so are its weights."""
    lines = Run(out).metrics()
    return Run(out).weights_file.exists() and any(line["epoch"] == config.epochs for line in lines)


@dataclass(frozen=True)
class _Attacked:
    """What a training deploys, and the test images that it is measured on."""

    run: Run
    name: str
    dataset: Dataset
    images: Images
    model: nn.Module
    description: Description

    def pgd20(self, device: torch.device) -> tuple[Accuracy, Accuracy]:
        """On clean images and against PGD-20, in the ball that the model is meant for."""
        norm, eps_255 = self.description.norm, self.description.eps_255
        attack = AttackConfig(norm=norm, eps_255=eps_255, step_255=eps_255 / 4, steps=PGD_STEPS)
        sizes = self.dataset.max_value, len(self.dataset.classes)
        with progress(f"PGD-20 on {self.name}", len(self.images.labels)) as advance:
            return accuracies(self.model, self.images, *sizes, attack, world=World(device), advance=advance)

    def autoattack(self, most: int | None, search: EvaluationDtype) -> dict[str, Any]:
        """The row's fields of AutoAttack, which searches in `search`, on the first `most` images. Its state lies in the
        run."""
        num_images = min(len(self.images.labels) if most is None else most, len(self.images.labels))
        if not num_images:
            return {"autoattack": None}
        x, y = (part[:num_images] for part in as_images(self.images, self.dataset.max_value))
        settings = EvaluationSettings(norm=self.description.norm, eps=self.description.eps_255 / 255, dtype=search)
        state = self.run.path / (f"autoattack-{num_images}" + ("" if search == "fp32" else f"-{search}"))
        with progress(f"AutoAttack on {self.name}", num_images) as advance:
            result = evaluate(self.model, x, y, settings, state=state, advance=advance)
        return {
            "autoattack": round(result.robust, 3),
            "num_autoattack": num_images,
            "search": search,
            "autoattack_after": {attack: round(percent, 3) for attack, percent in result.after.items()},
            "warnings": list(result.warnings),
            "autoattack_options": list(result.options),
            "minutes_autoattack": round(sum(result.seconds.values()) / 60, 2),
        }


def _analysis(out: Path, device: torch.device, name: str) -> dict[str, float]:
    with progress(f"analysing {name}", 100) as advance:
        return analyze(out, device=device, advance=advance)["summary"]


def _minutes(lines: list[dict[str, Any]], attacking: float) -> dict[str, float]:
    """`minutes`: training with its compilation, as a run counts; `minutes_total`: all from the first step to the end of
    PGD-20 (`attacking` seconds) with every evaluation on the way, without the compilation."""
    training, compiling = lines[-1]["seconds"], sum(line.get("compile_seconds", 0.0) for line in lines)
    evaluating = sum(line.get("evaluation_seconds", 0.0) for line in lines)
    seconds = {
        "minutes": training,
        "minutes_compiling": compiling,
        "minutes_evaluating": evaluating,
        "minutes_pgd20": attacking,
        "minutes_total": training - compiling + evaluating + attacking,
    }
    return {name: round(value / 60, 2) for name, value in seconds.items()}
