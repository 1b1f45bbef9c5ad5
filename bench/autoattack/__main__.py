"""AutoAttack side by side with pyautoattack, Croce and Hein's own code: the same model, images and machine.

    python -m bench.autoattack --model model.safetensors --data cifar10

Attack by attack and in turns: fastarat, pyautoattack, and in the next turn the other way round. In one attack both
get the same images: those that are robust to either's attacks before. Each has a seed of its own in each turn, so
that the turns also show what seeds alone change. Counts come before times: a row is `correct` if what fastarat found is
confirmed here once more, and if it holds at most one point more images for robust than pyautoattack does.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.autoattack.rows import ENGINES, Turn, headline, print_tables, rows_of
from bench.common import command
from bench.common.rows import RESULTS, base_row, write_row
from fastarat.attacks.projections import lengths
from fastarat.common.console import progress
from fastarat.common.errors import UserError
from fastarat.common.turns import in_turn
from fastarat.config.evaluation import STANDARD, EvaluationSettings
from fastarat.data.images.classes import in_order_of
from fastarat.data.images.dataset import subset
from fastarat.data.open import open_dataset
from fastarat.evaluation.autoattack.checks import check_model
from fastarat.evaluation.autoattack.driver import autoattack
from fastarat.evaluation.autoattack.engines import NORMS, package
from fastarat.evaluation.autoattack.prepared_model import prepared
from fastarat.evaluation.autoattack.state import TOLERANCE
from fastarat.models.predictions import are_right
from fastarat.runs.deployed import load_deployed

BATCH = 250
"""the standard's, for both"""
SMOKE = {"num_images": 6, "eps_255": 4.0}


@dataclass(frozen=True)
class AttackCase:
    """What both engines attack."""

    model: nn.Module
    images: Tensor
    """floats in [0, 1]: [N, C, H, W]"""
    labels: Tensor
    norm: Any
    eps: float
    attacks: tuple[str, ...]


@command.program("bench.autoattack")
def main(args: list[str] | None) -> int:
    """Measure, print, write rows; 0 if every count is right, 1 if not, 2 for what cannot be run."""
    arguments = _arguments(args)
    case, dataset = _case(arguments)
    turns, size = [], len(case.labels)
    with progress(f"{arguments.turns} turns", 2 * arguments.turns * len(case.attacks)) as advance:
        for number in range(arguments.turns):
            turns.append(turn(case, number, advance))
    # Where things lay on this machine is of no use elsewhere.
    given = {key: value for key, value in vars(arguments).items() if key not in ("rows", "json")}
    settings = {**given, "model": arguments.model.name if arguments.model else None}
    base = base_row("autoattack", settings, dataset, device=arguments.device)
    rows = [{**base, "num_images": size, **row} for row in rows_of(turns, case.attacks, arguments.norm)]
    for row in rows:
        write_row(arguments.rows, row)
    return command.report(rows, arguments, print_tables, headline)


def _arguments(args: list[str] | None) -> argparse.Namespace:
    """The flags, complete and checked. Raises `UserError`."""
    parser = command.Parser("bench.autoattack", __doc__)
    parser.add_argument("--model", type=Path, help="an exported model.safetensors, or a run's directory")
    parser.add_argument("--num-images", type=int, default=500, help="of the test split, chosen by seed 0")
    parser.add_argument("--norm", choices=tuple(NORMS), default="linf")
    parser.add_argument("--eps-255", type=float, default=8.0)
    parser.add_argument("--attacks", nargs="+", choices=STANDARD, default=list(STANDARD))
    parser.add_argument("--turns", type=int, default=2)
    smoke = "a net of random weights, few images: does it run?"
    command.flags(parser, "device", "rows", "json", data="a data set with a test split", smoke=smoke)
    arguments = command.parsed(parser, args, "compares the two there", rows=(None, RESULTS / "autoattack.jsonl", None))
    command.check_positive(arguments, "num_images", "eps_255", "turns")
    if arguments.smoke:
        vars(arguments).update(SMOKE)
    elif arguments.model is None or arguments.data is None:
        raise UserError("--model and --data: give both, or --smoke")
    command.check_writable(arguments.rows)
    package()
    return arguments


def _case(arguments: argparse.Namespace) -> tuple[AttackCase, str]:
    """What is attacked, and the data's name."""
    if arguments.smoke:
        torch.manual_seed(0)
        layers = nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 9, 10)
        model, images = nn.Sequential(*layers), torch.rand(arguments.num_images, 3, 8, 8)
        labels, dataset, num_classes = model(images).argmax(1), "random", 10
    else:
        model, description = load_deployed(arguments.model)
        fix = "give the --data it was trained on, or call them the same"
        data = in_order_of(open_dataset(arguments.data), description.classes, arguments.model, fix)
        chosen, dataset = subset(data.decoded_test, arguments.num_images, 0), data.name
        num_classes = description.num_classes
        images = torch.from_numpy(chosen.images).permute(0, 3, 1, 2).contiguous().float() / data.max_value
        labels = torch.from_numpy(chosen.labels).long()
    # Constant weights for both: pyautoattack would else compute and keep every parameter's gradient in FAB.
    model = model.to(arguments.device).eval().requires_grad_(False)
    images, labels = images.to(arguments.device), labels.to(arguments.device)
    check_model(model, images, num_classes)
    return AttackCase(model, images, labels, arguments.norm, arguments.eps_255 / 255, tuple(arguments.attacks)), dataset


@torch.no_grad()
def turn(case: AttackCase, seed: int, advance: Callable[[float], None]) -> Turn:
    """All attacks once by both engines, fastarat first in even turns."""
    done = Turn()
    clean = are_right(torch.cat([case.model(x) for x in case.images.split(BATCH)]), case.labels)
    for flags in done.robust.values():
        flags.append(clean)
    for name in case.attacks:
        left = (done.robust["fastarat"][-1] | done.robust["pyautoattack"][-1]).nonzero().flatten()
        done.attacked.append(len(left))
        for engine in in_turn(ENGINES, seed):
            begun, cpu_begun = time.perf_counter(), time.process_time()
            x_adv = RUNS[engine](case, name, left, seed=seed) if len(left) else case.images[left]
            if x_adv.is_cuda:
                torch.cuda.synchronize()
            done.seconds[engine].append(time.perf_counter() - begun)
            done.cpu_seconds[engine].append(time.process_time() - cpu_begun)
            wrong, valid = checked(case, left, x_adv)
            if engine == "fastarat":
                done.unconfirmed.append(int((wrong & ~valid).sum()))
            # pyautoattack counts what is outside the ball, too.
            broken = left[wrong & valid] if engine == "fastarat" else left[wrong]
            done.robust[engine].append(done.robust[engine][-1].index_fill(0, broken, False))
            advance(1)
    return done


def _ours(case: AttackCase, name: str, rows: Tensor, *, seed: int) -> Tensor:
    x, y = case.images[rows], case.labels[rows]
    settings = EvaluationSettings(name, norm=case.norm, eps=case.eps, seed=seed, batch=BATCH)
    with prepared(case.model, x) as logits_of:
        result = autoattack(logits_of, x, y, settings)
    return x.index_copy(0, result.rows.to(x.device), result.x_adv.to(x.device))


def _pyautoattack(case: AttackCase, name: str, rows: Tensor, *, seed: int) -> Tensor:
    options = {"norm": NORMS[case.norm], "eps": case.eps, "seed": seed, "device": case.images.device}
    attack = package()(case.model, version="standard", **options)
    # Version "custom" would run APGD-CE from five starts, where the standard has one.
    attack.attacks_to_run = [name]
    return attack.run_standard_evaluation(case.images[rows], case.labels[rows], batch_size=BATCH)[0]


RUNS = {"fastarat": _ours, "pyautoattack": _pyautoattack}


def checked(case: AttackCase, rows: Tensor, x_adv: Tensor) -> tuple[Tensor, Tensor]:
    """Which of the images that an engine returned are misclassified; which lie in the ball and in [0, 1]."""
    wrong = ~are_right(torch.cat([case.model(x) for x in x_adv.split(BATCH)]), case.labels[rows])
    inside = lengths(x_adv - case.images[rows], case.norm).flatten() <= case.eps + TOLERANCE[case.norm]
    return wrong, inside & ((x_adv >= 0) & (x_adv <= 1)).flatten(1).all(1)


if __name__ == "__main__":
    sys.exit(main())
