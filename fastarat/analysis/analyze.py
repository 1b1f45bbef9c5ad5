"""The whole analysis of a run: every measure for every state that it has kept, and its deployed model looked at."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from fastarat.analysis import conflict, features, mixture, surface
from fastarat.analysis.batches import attacking
from fastarat.analysis.measure import View
from fastarat.analysis.perturbations import Attacked, attack_images, examples, perturbation_norms
from fastarat.analysis.snapshots import Kept, kept_states, load, reconstruct
from fastarat.analysis.surface import Surface, loss_surface
from fastarat.common.console import notice
from fastarat.common.distributed import World, divided
from fastarat.runs.deployed import load_deployed
from fastarat.runs.run import Run

NUM_SURFACES, NUM_SHOWN = 4, 8
DEFINITIONS = {**conflict.DEFINITIONS, **mixture.DEFINITIONS, **features.DEFINITIONS, **surface.DEFINITIONS}


@dataclass(frozen=True)
class Analysis:
    """What `fastarat analyze` writes, and what else its pictures show."""

    result: dict[str, Any]
    """JSON-able"""
    attacked: Attacked
    """test images under PGD-20 against the deployed model"""
    shown: list[int]
    """which of the images the gallery shows"""
    surface: Surface
    """round the images whose places `surface.images` of the result names"""


def analyze(run: Path, device: str | torch.device = "cpu", **options: Any) -> dict[str, Any]:
    """Everything `fastarat analyze RUN` writes to `analysis.json`: plain numbers, lists and names.

    Per layer, for each kept state: gradient conflict, mixture distance, feature cosine, spread (`definitions` says what
    they are). `summary`: their means at the last checkpoint, of conflicts over convolutions and linear layers, of the
    others over the aligned layers. The deployed model's loss surfaces and perturbation norms stand beside. `options` as
    of `whole_analysis`. Raises `UserError` for what cannot be analysed.
    """
    return whole_analysis(run, World(torch.device(device)), **options).result


def whole_analysis(
    path: Path,
    world: World,
    *,
    num_images: int = 200,
    batches: int = 4,
    seed: int = 0,
    data: str | None = None,
    epochs: Sequence[int] = (),
    advance: Callable[[float], None] = lambda percent: None,
) -> Analysis:
    """What `analyze` gives, with the images and grids that pictures need. The run's files are left as they are.

    `num_images`: test images; `batches`: training batches; `epochs`: of the snapshots, only these; `data`: where the
    images lie, if not where the run found them. Several processes of `world` share the states, and all get the result.
    `advance` is told what is done, in percent. Raises `UserError` for what
    cannot be analysed.
    """
    run = Run(path)
    kept = kept_states(run, epochs)
    training = reconstruct(run.config(), data, world.device, run.checkpoint("last"))
    if training.dataset.matched:
        notice(f"classes of {training.dataset.name}: {training.dataset.matched}")
    view = View.of(training, num_images, batches, seed)
    total = view.work * (len(kept) + 1)

    def done(work: float) -> None:
        advance(100 * work / total)

    states = measured_states(view, kept, done, world)
    deployed, _ = load_deployed(path)
    deployed.to(world.device, view.x.dtype)
    batch = view.training.config.evaluation.batch
    attacked = attack_images(deployed, view.x, view.y, view.attack, seed=seed, batch=batch)
    shown = examples(attacked, NUM_SHOWN)
    chosen = examples(attacked, NUM_SURFACES)
    x, y, attack = view.x[chosen], view.y[chosen], view.attack
    found = loss_surface(deployed, x, y, attack.norm, attack.eps, seed)
    done(view.work)
    result = {
        **described(path, view),
        "summary": summary(states, attacked),
        "states": states,
        "perturbations": perturbation_norms(attacked),
        "surface": {"images": chosen, "radii": found.radii.tolist(), "loss": found.loss.tolist()},
        "gallery": gallery(view, attacked, shown),
        "definitions": DEFINITIONS,
    }
    return Analysis(rounded(result), attacked, shown, found)


def measured_states(
    view: View, kept: Sequence[Kept], done: Callable[[float], None], world: World
) -> list[dict[str, Any]]:
    """Each state's measures, by step; a step that was kept twice is measured once and has both names."""
    names: dict[int, list[str]] = {}
    first: dict[int, Kept] = {}
    for state in kept:
        load(view.training, state)
        step = view.training.step
        names.setdefault(step, []).append(state.name)
        first.setdefault(step, state)

    def measured(step: int) -> dict[str, Any]:
        load(view.training, first[step])
        return view.measure(lambda work: done(work * world.size))

    done(view.work * (len(kept) - len(first)))
    steps = sorted(first)
    found = divided(steps, measured, world)
    return [{"names": names[step], **measures} for step, measures in zip(steps, found, strict=True)]


def described(path: Path, view: View) -> dict[str, Any]:
    """What was analysed, and with what."""
    config = view.training.config
    return {
        "run": str(path),
        "recipe": config.recipe,
        "method": config.method.name,
        "model": config.model.name,
        "data": view.training.dataset.name,
        "averaging": config.averaging.kind,
        "classes": list(view.training.dataset.classes),
        "classes_matched": view.training.dataset.matched,
        "aligned_layers": list(view.aligned),
        "num_images": len(view.y),
        "batches": view.num_batches,
        "batch": view.rows,
        "seed": view.seed,
        "dtype": view.training.parts.precision.dtype,
        "device": view.training.parts.world.device.type,
        "training_attack": asdict(attacking(view.training)[0].attack.resolved()),
        "test_attack": asdict(view.attack),
    }


def summary(states: Sequence[dict[str, Any]], attacked: Attacked) -> dict[str, Any]:
    """The last checkpoint's means over layers, and the deployed model's accuracy on the images."""
    last = next(state for state in states if "last" in state["names"])
    groups = {name: 100 * float(chosen.float().mean()) for name, chosen in attacked.groups.items()}
    return {
        "epoch": last["epoch"],
        **last["means"],
        "clean_percent": groups["broken"] + groups["robust"],
        "pgd20_percent": groups["robust"],
        "not_attackable": int((attacked.groups["robust"] & attacked.not_attackable).sum()),
    }


def gallery(view: View, attacked: Attacked, shown: Sequence[int]) -> list[dict[str, Any]]:
    """Labels of the images that the gallery shows."""
    classes = view.training.dataset.classes
    named = {"label": attacked.y, "clean": attacked.clean_prediction, "adversarial": attacked.adversarial_prediction}
    names = [*classes, "nothing"]  # -1 are logits that predict nothing
    return [{"image": i, **{name: names[int(values[i])] for name, values in named.items()}} for i in shown]


def rounded(value: Any) -> Any:
    """Nested values with six decimals; what is not finite becomes null, which JSON can hold."""
    if isinstance(value, float):
        return round(value, 6) if abs(value) < float("inf") else None
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    return [rounded(part) for part in value] if isinstance(value, list | tuple) else value
