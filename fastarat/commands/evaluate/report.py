"""What `fastarat eval` says: tables and sentences, or JSON."""

import json
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from fastarat.commands.evaluate.arguments import SAVED
from fastarat.common.console import notice, print_json, print_table, stdout
from fastarat.common.files import write_atomically, write_text

if TYPE_CHECKING:
    from pathlib import Path

    from fastarat.commands.evaluate.work import Work
    from fastarat.evaluation.result import Evaluation


def report(work: "Work", evaluation: "Evaluation") -> None:
    """Print the result, and write the files that were asked for: a full disk, or a reader that has gone away, costs
    none of the others what took so long."""
    arguments, result = work.arguments, as_json(work, evaluation)
    with ExitStack() as whatever_fails:
        if arguments.save is not None:
            whatever_fails.callback(save, arguments.save, work, evaluation)
        if arguments.out is not None:
            whatever_fails.callback(write_text, arguments.out, json.dumps(result, indent=2) + "\n")
        if arguments.json:
            print_json(result)
        else:
            _print(result)


def as_json(work: "Work", evaluation: "Evaluation") -> dict[str, Any]:
    """The result with what it was made with."""
    from fastarat.common.environment import environment

    classes, told = work.data.classes, evaluation.to_json()
    result: dict[str, Any] = {
        "model": work.arguments.model,
        "branch": work.arguments.branch,
        "data": work.data.name,
        "classes_matched": work.data.matched,
        "num_images": evaluation.num_images,
        "clean": _summary(evaluation, "clean", classes),
    }
    if not work.settings.names:
        result["warnings"] = told["warnings"]
    else:
        result |= {"robust": _summary(evaluation, list(evaluation.flags)[-1], classes), "attack": _attack(work)}
        result |= {name: told[name] for name in ("counts", "not_attackable", "undefined_logits")}
        for name in ("after", "seconds"):
            result[name] = {attack: round(number, 3) for attack, number in told[name].items()}
        result |= {name: told[name] for name in ("warnings", "options", "complete", "stopped")}
    kept = ("fastarat", "commit", "date", "python", "torch", "cuda", "gpu", "driver", "threads")
    found = environment()
    record = {"device": work.device.type, "seed": work.arguments.seed, **{name: found[name] for name in kept}}
    return {**result, "record": record}


def save(path: "Path", work: "Work", evaluation: "Evaluation") -> None:
    """Write the broken images and what broke them, once more checked, as plain arrays."""
    import numpy as np

    from fastarat.evaluation.autoattack.state import as_numbers

    breaks = work.breaks(evaluation)
    if not breaks.all():
        notice(f"{int((~breaks).sum())} of {len(breaks)} adversarial images do not break the model once more: left out")
    rows = evaluation.rows[breaks]
    tensors = as_numbers(work.images[rows]), evaluation.x_adv[breaks], work.labels[rows], rows
    arrays = {name: tensor.numpy() for name, tensor in zip(SAVED, tensors, strict=True)}

    def write(temporary: "Path") -> None:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]

    write_atomically(path, write)


def _attack(work: "Work") -> dict[str, Any]:
    from fastarat.attacks.registry import ATTACKS

    a, names = work.arguments, work.settings.names
    name = f"{names[0]}-{a.steps}" if names in (("pgd",), ("cw",)) else work.settings.attack
    attack: dict[str, Any] = {"name": name, "attacks": list(names), "norm": work.settings.norm, "eps_255": work.eps_255}
    if {"pgd", "cw"} & set(names):
        step_255 = work.eps_255 / 4 if a.step_255 is None else a.step_255
        objective = "margin" if names == ("cw",) else a.objective
        attack |= {"steps": a.steps, "step_255": step_255, "restarts": a.restarts, "objective": objective}
        attack["counted"] = "every iterate of every restart"
    if any(ATTACKS[name].fewest_classes for name in names):
        attack["targets"] = a.targets
    return {**attack, "dtype": a.dtype, "engine": a.engine, "batch": a.batch}


def _summary(evaluation: "Evaluation", stage: str, classes: tuple[str, ...]) -> dict[str, Any]:
    accuracy = evaluation.accuracy(stage)
    low, high = accuracy.interval
    per_class = zip(classes, accuracy.per_class, strict=True)
    return {
        "percent": round(accuracy.percent, 3),
        "interval_95": [round(low, 3), round(high, 3)],
        "per_class": {name: None if value is None else round(value, 3) for name, value in per_class},
    }


def _print(result: dict[str, Any]) -> None:
    kinds = [kind for kind in ("clean", "robust") if kind in result]
    rows = [["all", *(_cell(result[kind]) for kind in kinds)]]
    for name in result["clean"]["per_class"]:
        values = [result[kind]["per_class"][name] for kind in kinds]
        rows.append([name, *("-" if value is None else f"{value:.1f}" for value in values)])
    attack = result.get("attack")
    so_far = "" if result.get("complete", True) else " so far"
    heads = ["clean %", f"{attack['name']}{so_far} %"] if attack else ["clean %"]
    print_table(f"{result['model']} on {result['num_images']} test images of {result['data']}", ["class", *heads], rows)
    if attack:
        _print_attack(result, attack)
    for warning in result["warnings"]:
        stdout.print(f"warning: {warning}")
    if result.get("options"):
        stdout.print(f"not the standard's setting: {'; '.join(result['options'])}")


def _print_attack(result: dict[str, Any], attack: dict[str, Any]) -> None:
    if len(result["counts"]) > 2:
        rows = [["clean", str(result["counts"]["clean"]), f"{result['clean']['percent']:.2f}", "", ""]]
        for name, percent in result["after"].items():
            row = [name, str(result["counts"][name]), f"{percent:.2f}", str(result["not_attackable"][name])]
            rows.append([*row, f"{result['seconds'][name]:.1f}"])
        print_table("", ["after", "images", "%", "not attackable", "seconds"], rows)
    line = f"{attack['name']}, {attack['norm']}, eps {attack['eps_255']:g}/255"
    if "steps" in attack:
        starts = f"{attack['restarts']} restart{'s' if attack['restarts'] > 1 else ''}"
        line += f", step {attack['step_255']:g}/255, {starts}: right at every iterate"
    stdout.print(line)


def _cell(summary: dict[str, Any]) -> str:
    low, high = summary["interval_95"]
    return f"{summary['percent']:.2f} ({low:.1f}-{high:.1f})"
