"""Robust accuracy: train methods alike over seeds, evaluate the deployed weights, write rows.

    python -m bench.robustness --suite digits --seeds 3

Each training is a run directory under --runs; a training whose row is there already is skipped.
"""

import argparse
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from bench.rows import RESULTS, base_row, read_rows, write_row
from fastarat.attacks.settings import AttackConfig
from fastarat.checkpoint import load_model
from fastarat.config import Config, from_dict, load_config
from fastarat.console import notice, print_table, progress
from fastarat.data.sources import open_dataset
from fastarat.data.subset import subset
from fastarat.engine.distributed import World
from fastarat.errors import UserError, WorkError
from fastarat.evaluation import evaluate
from fastarat.recipes import recipe
from fastarat.report import learning_curves
from fastarat.run import Run
from fastarat.trainer import Interrupted, train


@dataclass(frozen=True)
class Suite:
    """Recipes that are compared, on which data, and how many test images are attacked (None: all)."""

    recipes: tuple[str, ...]
    data: str
    num_images: int | None


SUITES = {
    "digits": Suite(("digits-arat", "digits-at"), "digits", None),
    "cifar10-tiny": Suite(("cifar10-tiny-arat", "cifar10-tiny-at"), "cifar10-jpeg", 2000),
    "paper-resnet18": Suite(("cifar10-resnet18-arat", "cifar10-resnet18-at"), "cifar10-jpeg", None),
}
COLUMNS = ["method", "seeds", "clean %", "PGD-20 %", "minutes", "run"]


def main(args: list[str] | None = None) -> int:
    """Run a suite and print its table."""
    arguments = _arguments(args)
    suite = SUITES[arguments.suite]
    for name in suite.recipes:
        for seed in range(arguments.seeds):
            config = replace(recipe(name), seed=seed, data=arguments.data or suite.data)
            if not any(_is_row_of(row, arguments.suite, config) for row in read_rows(arguments.rows)):
                out = run_path(arguments.runs, name, seed)
                write_row(arguments.rows, measure(arguments.suite, config, out, suite.num_images))
    rows = [row for row in read_rows(arguments.rows) if row["suite"] == arguments.suite]
    print_table(f"suite {arguments.suite}", COLUMNS, summary(rows, arguments.runs))
    _draw(arguments.runs, suite, arguments.suite)
    return 0


def _arguments(args: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=SUITES, default="digits")
    parser.add_argument("--seeds", type=int, default=3, help="trainings per method")
    parser.add_argument("--data", help="data set instead of the suite's own")
    parser.add_argument("--runs", type=Path, default=Path("runs/robustness"), help="where trainings go")
    parser.add_argument("--rows", type=Path, default=RESULTS / "robustness.jsonl", help="where rows go")
    return parser.parse_args(args)


def run_path(runs: Path, recipe_name: str, seed: int) -> Path:
    """Where a training of the suite lies."""
    return runs / f"{recipe_name}-seed{seed}"


def _is_row_of(row: dict[str, Any], suite: str, config: Config) -> bool:
    return row["suite"] == suite and from_dict(row["config"], "a result row") == config


def measure(suite: str, config: Config, out: Path, num_images: int | None) -> dict[str, Any]:
    """Train (or go on training) one configuration, and attack what it deploys on `num_images` test images (None: all).

    The result is the row of `suite`.
    """
    begun = (out / "config.json").exists()
    if begun and load_config(out / "config.json") != config:
        raise UserError(f"{out} is a run with other settings: move it away, or give another --runs")
    run = train(config, out, resume=begun)
    device = torch.device("cuda" if torch.cuda.is_available() and config.device != "cpu" else "cpu")
    model, description = load_model(run.weights_file)
    dataset = open_dataset(config.data)
    images = subset(dataset.test, num_images, seed=0)
    step_255 = config.attack.eps_255 / 4
    attack = AttackConfig(norm=config.attack.norm, eps_255=config.attack.eps_255, step_255=step_255, steps=20)
    started = time.monotonic()
    with progress(f"PGD-20 on {config.recipe}, seed {config.seed}", len(images.labels)) as advance:
        clean, robust = evaluate(
            model.to(device),
            images,
            dataset.max_value,
            len(dataset.classes),
            attack,
            world=World(device),
            advance=advance,
        )
    lines = [line for line in run.metrics() if "train" in line]
    return {
        **base_row("robustness", config, dataset.name, device.type),
        "correct": robust.percent <= clean.percent and all(line["train"]["loss"] < float("inf") for line in lines),
        "suite": suite,
        "method": "arat-swa" if config.averaging.kind == "swa" else config.method.name,
        "fidelity": config.fidelity,
        "model": description.model,
        "seed": config.seed,
        "epochs": config.epochs,
        "checkpoint": "best" if config.num_validation_images else "last",
        "num_images": len(images.labels),
        "clean": round(clean.percent, 3),
        "pgd20": round(robust.percent, 3),
        "autoattack": None,
        **_minutes(lines, time.monotonic() - started),
        "images_per_s": round(mean(line["images_per_s"] for line in lines), 1),
    }


def _minutes(lines: list[dict[str, Any]], attacking: float) -> dict[str, float]:
    """`minutes`: training with its compilation, as a run counts; `minutes_total`: all from the first step to the end of
    the attack (`attacking` seconds) with every evaluation on the way, without the compilation."""
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


def summary(rows: list[dict[str, Any]], runs: Path) -> list[list[str]]:
    """A table row per method: mean and spread over its seeds, and the directory of the last of its trainings."""
    methods = dict.fromkeys(row["method"] for row in rows)
    table = []
    for method in methods:
        of_method = [row for row in rows if row["method"] == method]
        cells = [spread([row[name] for row in of_method]) for name in ("clean", "pgd20", "minutes")]
        last = of_method[-1]
        table.append([method, str(len(of_method)), *cells, str(run_path(runs, last["config"]["recipe"], last["seed"]))])
    return table


def spread(values: list[float]) -> str:
    """Mean and, for several values, their standard deviation."""
    return f"{mean(values):.1f} ± {stdev(values):.1f}" if len(values) > 1 else f"{values[0]:.1f}"


def _draw(runs: Path, suite: Suite, name: str) -> None:
    lines = {recipe_name: Run(run_path(runs, recipe_name, 0)).metrics() for recipe_name in suite.recipes}
    lines = {recipe_name: found for recipe_name, found in lines.items() if found}
    if lines:
        path = runs / f"{name}.png"
        learning_curves(path, lines, name)
        notice(f"learning curves: {path}")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (UserError, WorkError, Interrupted) as e:
        sys.exit(f"bench.robustness: error: {e}")
