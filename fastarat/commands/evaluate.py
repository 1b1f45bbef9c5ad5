"""`fastarat eval RUN|FILE`: clean and robust accuracy of the deployed model."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from fastarat.attacks.settings import AttackConfig
from fastarat.cli import parse
from fastarat.console import notice, print_json, print_table, progress
from fastarat.errors import UserError, WorkError, unknown
from fastarat.files import write_text

if TYPE_CHECKING:
    from fastarat.data.dataset import Dataset
    from fastarat.evaluation import Accuracy

ATTACKS = ("none", "pgd")


@dataclass(frozen=True)
class EvalArguments:
    """Measure a run's deployed model, or a model.safetensors, on test images: clean, and under PGD.

    An image counts as robust if every iterate of every restart leaves it right.
    For example: fastarat eval runs/digits-arat --steps 50 --restarts 5
    """

    model: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN|FILE")]
    """a run's directory, or a model.safetensors of a run or an export"""
    attack: str = "pgd"
    """pgd, or none for clean accuracy only"""
    data: str | None = None
    """data set; default the one it was trained on"""
    num_images: int | None = None
    """test images, chosen by the seed; default all"""
    norm: Literal["linf", "l2"] | None = None
    """threat model; default the one of the training"""
    eps_255: float | None = None
    """radius of the ball, in 1/255 of the pixel range; default the one of the training"""
    step_255: float | None = None
    """step size, in 1/255 of the pixel range; default eps / 4"""
    steps: int = 20
    """gradient steps"""
    restarts: int = 1
    """random starts"""
    objective: Literal["cross-entropy", "margin"] = "cross-entropy"
    """what the attack raises"""
    checkpoint: str | None = None
    """of a run: last, best, or a step's number, instead of the deployed weights"""
    branch: Literal["adv", "clean"] = "adv"
    """of a run's checkpoint: the branch"""
    batch: int = 500
    """images at a time"""
    seed: int = 0
    """attack starts and choice of images"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where to compute"""
    json: bool = False
    """print JSON"""
    out: Path | None = None
    """write the JSON to this file too"""


def run(args: list[str]) -> int:
    """Evaluate and print a table, or JSON."""
    arguments = parse(EvalArguments, args, "fastarat eval")
    _check(arguments)
    result = _evaluate(arguments)
    if arguments.out is not None:
        import json

        write_text(arguments.out, json.dumps(result, indent=2) + "\n")
    if arguments.json:
        print_json(result)
    else:
        _print(result)
    return 0


def _check(arguments: EvalArguments) -> None:
    if arguments.attack not in ATTACKS:
        raise unknown("attack", arguments.attack, ATTACKS)
    if arguments.out is not None and arguments.out.is_dir():
        raise UserError(f"--out {arguments.out} is a directory: give a file")
    if arguments.out is not None and not arguments.out.parent.is_dir():
        raise UserError(f"--out {arguments.out}: there is no directory {arguments.out.parent}; make it first")
    if not 0 <= arguments.seed < 2**64:
        raise UserError(f"--seed {arguments.seed}: give 0 or more, below 2^64")
    for name in ("restarts", "batch", "num_images"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: give 1 or more")


def _evaluate(arguments: EvalArguments) -> dict[str, Any]:
    from fastarat.data.sources import open_dataset
    from fastarat.data.subset import subset
    from fastarat.deployed import load_deployed
    from fastarat.engine.distributed import World
    from fastarat.evaluation import evaluate

    device = _device(arguments.device)
    model, description = load_deployed(arguments.model, arguments.checkpoint, arguments.branch)
    attack = _attack(arguments, description.norm, description.eps_255)
    dataset = open_dataset(arguments.data or description.data)
    _fits(dataset, description.image_shape, description.num_classes)
    images = subset(dataset.test, arguments.num_images, arguments.seed)
    with _enough_memory(arguments.batch), progress("evaluating", len(images.labels)) as advance:
        clean, robust = evaluate(
            model.to(device),
            images,
            dataset.max_value,
            description.num_classes,
            attack,
            restarts=arguments.restarts if arguments.attack == "pgd" else 0,
            batch=arguments.batch,
            seed=arguments.seed,
            world=World(device),
            advance=advance,
        )
    result: dict[str, Any] = {
        "model": str(arguments.model),
        "branch": arguments.branch,
        "data": dataset.name,
        "num_images": len(images.labels),
        "clean": _summary(clean, dataset),
    }
    if arguments.attack == "pgd":
        result["robust"] = _summary(robust, dataset)
        result["attack"] = {
            "name": f"pgd-{attack.steps}",
            "norm": attack.norm,
            "eps_255": attack.eps_255,
            "step_255": attack.step_255,
            "restarts": arguments.restarts,
            "objective": attack.objective,
            "counted": "every iterate of every restart",
        }
    return result


@contextmanager
def _enough_memory(batch: int) -> Iterator[None]:
    import torch

    try:
        yield
    except torch.OutOfMemoryError:
        raise WorkError(f"out of GPU memory at batch {batch}: give a smaller --batch") from None


def _device(name: str):
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: this machine has no GPU that torch can use; leave it out for the CPU")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
        notice(f"device: {name}")
    return torch.device(name)


def _attack(arguments: EvalArguments, norm: str, eps_255: float) -> AttackConfig:
    if arguments.norm not in (None, norm) and arguments.eps_255 is None:
        raise UserError(f"--norm {arguments.norm}: the model was trained for {norm}; give --eps-255 too")
    eps_255 = eps_255 if arguments.eps_255 is None else arguments.eps_255
    attack = AttackConfig(
        norm=arguments.norm or norm,  # type: ignore[arg-type]
        eps_255=eps_255,
        step_255=eps_255 / 4 if arguments.step_255 is None else arguments.step_255,
        steps=arguments.steps,
        batch_norm="eval",
        objective=arguments.objective,
    )
    if problems := attack.problems():
        raise UserError("; ".join(problems))
    return attack


def _fits(dataset: "Dataset", image_shape: tuple[int, int, int], num_classes: int) -> None:
    height, width, channels = dataset.test.images.shape[1:]
    if (channels, height, width) != image_shape or len(dataset.classes) != num_classes:
        raise UserError(
            f"{dataset.name} has {len(dataset.classes)} classes of {channels}x{height}x{width} images, the model "
            f"was made for {num_classes} of {'x'.join(map(str, image_shape))}: give the --data it was trained on"
        )


def _summary(accuracy: "Accuracy", dataset: "Dataset") -> dict[str, Any]:
    low, high = accuracy.interval
    classes = zip(dataset.classes, accuracy.per_class, strict=True)
    return {
        "percent": round(accuracy.percent, 3),
        "interval_95": [round(low, 3), round(high, 3)],
        "per_class": {name: None if value is None else round(value, 3) for name, value in classes},
    }


def _print(result: dict[str, Any]) -> None:
    kinds = [kind for kind in ("clean", "robust") if kind in result]
    rows = [["all", *(_cell(result[kind]) for kind in kinds)]]
    for name in result["clean"]["per_class"]:
        values = [result[kind]["per_class"][name] for kind in kinds]
        rows.append([name, *("-" if value is None else f"{value:.1f}" for value in values)])
    attack = result.get("attack")
    heads = ["clean %"]
    if attack:
        heads.append(f"{attack['name']} %")
    print_table(
        f"{result['model']} on {result['num_images']} test images of {result['data']}",
        ["class", *heads],
        rows,
    )
    if attack:
        print(
            f"{attack['name']}, {attack['norm']}, eps {attack['eps_255']:g}/255, step {attack['step_255']:g}/255, "
            f"{attack['restarts']} restart{'s' if attack['restarts'] > 1 else ''}: right at every iterate"
        )


def _cell(summary: dict[str, Any]) -> str:
    low, high = summary["interval_95"]
    return f"{summary['percent']:.2f} ({low:.1f}-{high:.1f})"
