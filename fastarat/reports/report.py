"""The page: what is known of the runs, drawn and put into the template. It asks nothing of any network."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from markupsafe import Markup

from fastarat.analysis.pictures import layers
from fastarat.common.console import notice, printable
from fastarat.common.errors import UserError, WorkError
from fastarat.common.files import require_place, write_text
from fastarat.common.version import __version__
from fastarat.data.formats.find import find
from fastarat.evaluation.outcomes import Outcomes
from fastarat.evaluation.significance import compare
from fastarat.reports import pictures
from fastarat.reports.costs import costs
from fastarat.reports.facts import Facts, facts_of, names_of, settings_and_seeds, shared_outcomes, threat_named
from fastarat.reports.look import Look, look_at, side_among
from fastarat.reports.pictures import as_svg
from fastarat.reports.published import OTHER_DATA, net_beside
from fastarat.reports.repeat import commands
from fastarat.reports.verdict import measured, title_of, verdict, warnings_of
from fastarat.runs.metrics import accuracies
from fastarat.runs.run import Run

MARK = '<meta name="generator" content="fastarat report">'
"""what tells a report from a file of others"""
MOST_ROWS = 40
"""of a table of epochs; and the classes of one that is not folded"""
NOT_THERE = (
    *(UserError, WorkError, AttributeError, KeyError, TypeError, ValueError, IndexError, ArithmeticError),
    StopIteration,
)
"""what a part of a page may fail with where a file does not hold what it should; the page goes on without the part"""


def write_report(
    paths: Sequence[Path], out: Path, *, num_images: int = 500, device: str = "cpu", data: str | None = None
) -> dict[str, str]:
    """Write one self-contained HTML file of these runs, beside one another in their order; returns each one's verdict.

    `num_images`: test images on which each deployed model is evaluated by PGD-20, for the images shown; 0 shows none.
    `data`: where they lie, if not where the runs found them. Raises as `check_runs` does, `UserError` too where
    `data` fits no net, `WorkError` where the page cannot be written.
    """
    names = check_runs(paths, out, data)
    side = side_among(len(paths))
    looks = [_look(path, num_images, torch.device(device), data, side) for path in paths]
    runs = [facts_of(path, name) for path, name in zip(paths, names, strict=True)]
    write_text(out, page_of(runs, looks))
    return {run.name: verdict(run) for run in runs}


def check_runs(paths: Sequence[Path], out: Path, data: str | None = None) -> list[str]:
    """The names of the runs in their report. Raises `UserError` for what is no run, for `data` that is no data set, and
    where the report would take the place of what is none, or cannot be."""
    for path in paths:
        Run(path).config()
    require_place("--out", out, _is_report)
    if data is not None:
        find(data)
    return names_of(list(paths))


def _is_report(path: Path) -> bool:
    with path.open("rb") as file:
        return MARK.encode() in file.read(2048)


def page_of(runs: Sequence[Facts], looks: Sequence[Look | str]) -> str:
    """The page of these runs; a look that there is none of is the reason."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("fastarat.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else printable(str(value)),
    )
    problems: list[str] = []
    return environment.get_template("page.html").render(
        mark=Markup(MARK),
        title=runs[0].name if len(runs) == 1 else f"{len(runs)} runs: {', '.join(run.name for run in runs)}",
        runs=[_of_run(run, look, problems) for run, look in zip(runs, looks, strict=True)],
        is_one=len(runs) == 1,
        curves=_curves(runs),
        curves_of=[evaluated_by(run, _held(runs)[0]) for run in _held(runs)],
        **_trade_off(runs),
        differing=differing_settings(runs),
        **_comparison(runs),
        problems=problems,
        version=__version__,
        written=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    )


def differing_settings(runs: Sequence[Facts]) -> dict[str, list[Any]]:
    """The settings that are not the same in all runs, by flag: the value of each run; the number format is that which
    `auto` took."""
    settings = [{**run.settings, "dtype": run.dtype} for run in runs]
    names = dict.fromkeys(name for of_run in settings for name in of_run)
    found = {name: [of_run.get(name, "-") for of_run in settings] for name in names}
    return {name: values for name, values in found.items() if any(value != values[0] for value in values)}


def _look(path: Path, num_images: int, device: torch.device, data: str | None, side: int) -> Look | str:
    if not num_images:
        return "they were not asked for"
    try:
        return look_at(path, num_images, device, data, side=side)
    except (UserError, WorkError) as error:
        if data is not None and isinstance(error, UserError) and Run(path).weights_file.exists():
            raise  # what was asked for cannot be shown
        notice(f"the report of {path} shows no images: {error}")
        return str(error)


def _part(draw: Callable[[], Any], what: str, problems: list[str]) -> Any:
    """What `draw` gives; None, and a line for the page, where what it is of does not fit."""
    try:
        return draw()
    except NOT_THERE as error:
        problems.append(f"{what} cannot be shown ({type(error).__name__}: {error}).")
        return None


def _of_run(facts: Facts, look: Look | str, problems: list[str]) -> dict[str, Any]:
    """All that the template shows of one run."""
    best = facts.best
    if facts.problem:
        problems.append(f"{facts.name}: its curves cannot be shown ({facts.problem}).")
    return {
        "facts": facts,
        "title": title_of(facts),
        "verdict": verdict(facts),
        "warnings": warnings_of(facts),
        "measured": measured(facts),
        "evaluations": [_evaluation(facts, outcomes) for outcomes in facts.outcomes],
        "epochs": _thinned(facts.epochs),
        "attack": pictures.attack_of(facts),
        "classes": best and _part(lambda: _classes(facts), f"{facts.name}: classes", problems),
        "look": look if isinstance(look, Look) else None,
        "no_look": look if isinstance(look, str) else "",
        "analysis": facts.analysis and _part(lambda: _analysis(facts), f"{facts.name}: its analysis", problems),
        "costs": _part(lambda: costs(facts), f"{facts.name}: its cost", problems) or {},
        "choices": _part(lambda: _choices(facts), f"{facts.name}: its choices", problems) or [],
        "changed": facts.changed_settings(),
        "commands": commands(facts),
        "made_with": _made_with(facts),
    }


def _evaluation(facts: Facts, outcomes: Outcomes) -> list[str]:
    """Its row of the table."""
    clean, robust = (f"{100 * float(flags.mean()):.2f}" for flags in (outcomes.flags["clean"], outcomes.robust))
    threat = threat_named(outcomes.attack["norm"], outcomes.attack["eps_255"])
    if number := outcomes.num_unsearched:
        robust += f" ({number:,} images not searched)"
    images = f"{len(outcomes.labels):,}"
    if not facts.is_of_own_data(outcomes):
        images += f" other images, of {outcomes.data}"
    return [outcomes.name, threat, images, clean, robust]


def _thinned(epochs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The epochs of a table that a person can read: evenly spaced, with the first and the last."""
    if len(epochs) <= MOST_ROWS:
        return epochs
    step = (len(epochs) - 1) / (MOST_ROWS - 1)
    return [epochs[round(i * step)] for i in range(MOST_ROWS)]


def _curves(runs: Sequence[Facts]) -> list[Markup]:
    trained = [run for run in runs if run.epochs]
    if not trained:
        return []
    ends = "; ".join(f"{run.name} ends at {run.epochs[-1]['train']['loss']:.3f}" for run in trained)
    found = [as_svg(pictures.loss_curves, trained, alt=f"Training loss over the epochs: {ends}.")]
    if held := _held(runs):
        held = [run for run in held if run.can_stand_beside(held[0])]
        last = [(run.name, next(e["evaluation"] for e in reversed(run.epochs) if "evaluation" in e)) for run in held]
        ends = "; ".join(f"{name} ends by {accuracies(of)}, of {of['num_images']:,} images" for name, of in last)
        found.append(as_svg(pictures.accuracy_curves, held, alt=f"Accuracy over the epochs: {ends}."))
    return found


def _published(runs: Sequence[Facts]) -> str | None:
    """The paper's net that can stand beside all runs."""
    nets = [net_beside(run.data, run.config.attack.norm, run.config.eps_255, run.config.model.name) for run in runs]
    return nets[0] if all(nets) else None


def _held(runs: Sequence[Facts]) -> list[Facts]:
    """Those that were evaluated after an epoch."""
    return [run for run in runs if any("evaluation" in line for line in run.epochs)]


def evaluated_by(facts: Facts, first: Facts) -> str:
    """What the accuracies of a run's epochs are of, or that they cannot stand in one picture with the first run's."""
    if not facts.can_stand_beside(first):
        return f"{facts.name}: of another threat model or data set ({facts.threat}, {facts.data}), and so not drawn"
    held = [line["evaluation"] for line in facts.epochs if "evaluation" in line]
    numbers = " or ".join(dict.fromkeys(f"{of['num_images']:,} {of['images']}" for of in held))
    return f"{facts.name}: dashed is accuracy under {pictures.attack_of(facts)} ({facts.threat}) on {numbers} images"


def _trade_off(runs: Sequence[Facts]) -> dict[str, Any]:
    """The picture of the runs that were evaluated under the threat model and on the data set of the first of them, and
    what there is to say of it."""
    known = [run for run in runs if measured(run)]
    shown = [run for run in known if run.can_stand_beside(known[0])]
    left_out = [f"{run.name} ({run.threat}, {run.data})" for run in known if run not in shown]
    net = _published(shown or runs)
    picture = _points(shown, net) if shown else None
    return {"trade_off": picture, "left_out": left_out, "paper_note": "" if net else OTHER_DATA}


def _points(runs: Sequence[Facts], net: str | None) -> Markup:
    known = {run.name: found for run in runs if (found := measured(run))}
    attacks = sorted({found.attack for found in known.values()})
    points = {
        name if len(attacks) == 1 else f"{name}, {found.attack}": (found.clean, found.robust)
        for name, found in known.items()
    }
    said = "; ".join(
        f"{name}: {found.clean:.1f} % clean, {found.robust:.1f} % under {found.attack}, of {found.num_images:,} "
        f"{found.images} images"
        for name, found in known.items()
    )
    under = f"{' or '.join(attacks)} ({runs[0].threat})"
    beside = f" The paper's trainings of a {net} stand beside as crosses." if net else ""
    alt = f"Clean accuracy against accuracy under {under}. {said}.{beside}"
    return as_svg(pictures.trade_off, points, net, under, alt=alt)


def _classes(facts: Facts) -> dict[str, Any]:
    best = facts.best
    assert best
    clean, robust = best.per_class("clean"), best.per_class(list(best.flags)[-1])
    counts = [int((best.labels == i).sum()) for i in range(len(best.classes))]
    rows = [
        (name, count, f"{c:.1f}", f"{r:.1f}", r)
        for name, count, c, r in zip(best.classes, counts, clean, robust, strict=True)
        if c is not None and r is not None
    ]
    rows.sort(key=lambda row: row[-1])
    least, most = rows[0], rows[-1]
    ends = f"Least robust: {least[0]}, {least[3]} %; most robust: {most[0]}, {most[3]} %."
    alt = f"Accuracy of each class of {facts.name}. {ends}"
    return {"attack": best.name, "rows": rows, "picture": as_svg(pictures.class_bars, best, alt=alt)}


def _analysis(facts: Facts) -> dict[str, Any]:
    """The figures of `fastarat analyze`, and its summary."""
    result = facts.analysis
    assert result
    what = {
        "conflict": (layers.conflict_picture, "Cosines between gradients, by layer and over training"),
        "mixture": (
            layers.mixture_picture,
            "Distance of clean and adversarial batch statistics, by layer and over training",
        ),
        "features": (layers.features_picture, "How alike clean and adversarial features are, and how far they spread"),
    }
    numbers = {
        name.replace("_", " "): f"{value:.3f}" for name, value in result["summary"].items() if isinstance(value, float)
    }
    surface = "Cross-entropy round some test images, along the gradient to the right and random signs upwards."
    return {
        "surface": as_svg(pictures.surfaces, result["surface"], alt=surface),
        "layers": [(f"{caption}.", as_svg(draw, result, alt=f"{caption}.")) for draw, caption in what.values()],
        "numbers": numbers,
    }


def _choices(facts: Facts) -> list[dict[str, str]]:
    """Every choice of every session; of one that was made alike in several the last."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for session in facts.sessions:
        for choice in session.get("choices", []):
            found[choice["what"], choice["value"]] = {name: choice[name] for name in ("what", "value", "why")}
    return list(found.values())


def _made_with(facts: Facts) -> dict[str, str]:
    names = ("fastarat", "commit", "date", "python", "torch", "cuda", "gpu", "driver", "machine", "processor")
    last = facts.last_session
    return {name: str(last[name]) for name in names if last.get(name)}


def _comparison(runs: Sequence[Facts]) -> dict[str, Any]:
    """What sets runs of other settings apart, if all have kept the same evaluation, and what there is to doubt of
    that."""
    found = shared_outcomes(runs) if len(runs) > 1 else None
    if not found:
        return {"comparison": None, "comparison_doubts": []}
    comparison = compare(found, settings_and_seeds(runs))
    said = [f"{name}: {warning}" for name, of in found.items() for warning in of.warnings]
    for names in comparison.trainings:
        if len(names) > 1:
            said.append(f"{' + '.join(names)} differ by their seeds alone: they stand together, and have no test.")
    for name in comparison.left_out(found):
        said.append(f"{name} has the settings and the seed of another run: it is left out of the tests.")
    return {"comparison": comparison, "comparison_doubts": said}
