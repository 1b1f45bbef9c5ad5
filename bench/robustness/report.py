"""Robustness rows as a table, and where methods stand between accuracy and robustness, the paper's beside ours."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from bench.common.rows import Row, commits, counted, cpu, markdown, warned
from bench.robustness.suites import SUITES
from fastarat.common.errors import UserError
from fastarat.common.figures import COLOURS, figure_of
from fastarat.config import Config, from_dict
from fastarat.config.method import ARRESTConfig
from fastarat.reports.published import PAPER

TITLES = {
    "at": "AT",
    "trades": "TRADES",
    "mart": "MART",
    "lbgat": "LBGAT",
    "standard": "standard training",
    "arrest": "ARREST (unofficial)",
    "fgsm-rs": "FGSM-RS",
    "n-fgsm": "N-FGSM",
    "arat/naive": "naive invariance",
    "arat/stop-gradient": "+ stop-gradient",
    "arat/predictor": "+ predictor",
    "arat/split-batch-norm": "+ split batch-norm",
    "arat": "AR-AT",
    "arat-swa": "AR-AT + SWA",
    "at/fp32": "AT, fp32",
    "at/bf16": "AT, bf16",
    "arat/fp32": "AR-AT, fp32",
    "arat/bf16": "AR-AT, bf16",
    "at/longer": "AT, as long as AR-AT",
}
PUBLISHED = " (as published)"
MEASURES = {
    "gradient_conflict": "gradient cosine, own",
    "naive_conflict": "gradient cosine, naive",
    "mixture_distance": "mixture distance",
    "feature_cosine": "feature cosine",
    "spread": "spread",
}
"""of an analysis, see `fastarat.analysis`"""


def rows_of(suite: str, rows: Iterable[Row]) -> list[Row]:
    """The suite's rows that can stand beside one another: of each training the last one, methods in the order of
    `TITLES`. Those on another data set than the last one are left out, and those by other settings than the last one of
    their method."""
    own = [(row, settings) for row in rows if row.get("suite") == suite and (settings := _settings(row))]
    own = [(row, settings) for row, settings in own if row["dataset"] == own[-1][0]["dataset"]]
    last_by = {(row["method"], row["fidelity"]): settings for row, settings in own}
    alike = [row for row, settings in own if settings == last_by[row["method"], row["fidelity"]]]
    newest = {(row["method"], row["fidelity"], row["seed"]): row for row in alike}
    order = {method: number for number, method in enumerate(TITLES)}
    last = len(order)
    return sorted(newest.values(), key=lambda row: (order.get(row["method"], last), row["fidelity"], row["seed"]))


def _settings(row: Row) -> Config | None:
    """What the seeds of a method share: all but the seed, and where its images and its teacher lay. None for a row with
    a setting that there is no more."""
    try:
        config = from_dict(row["config"], "a result row").resolved()
    except UserError:
        return None
    if isinstance(config.method, ARRESTConfig):
        config = replace(config, method=replace(config.method, teacher=""))
    return replace(config, seed=0, data=row["dataset"])


def by_method(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """The rows of each method that are right, by its title."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row["correct"]:
            found.setdefault(title_of(row), []).append(row)
    return found


def title_of(row: Row) -> str:
    """What people call its method."""
    return str(TITLES.get(row["method"], row["method"])) + ("" if row["fidelity"] == "paper" else PUBLISHED)


def doubts(rows: Sequence[Row]) -> str:
    """What the table leaves out, since it is not right, and what AutoAttack warned of; empty for neither."""
    left_out = [f"{title_of(row)}, seed {row['seed']} ({_why(row)})" for row in rows if not row["correct"]]
    said = [f"Left out: {'; '.join(left_out)}."] if left_out else []
    return " ".join(filter(None, [*said, warned(rows, title_of)]))


def _why(row: Row) -> str:
    """Why a row is not right."""
    if not_attackable := row.get("pgd20_not_attackable"):
        return f"{not_attackable:,} images gave PGD-20 no direction to follow"
    return "its loss was not finite, or more images are robust than are right"


def table(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """Columns and cells: mean and spread over each method's seeds."""
    measured: dict[str, str] = {"clean": "clean, %", "pgd20": "PGD-20, %", "autoattack": "AutoAttack, %"}
    measured["minutes"] = "minutes"
    analysed = any(row.get("analysis") for row in rows)
    columns = ["method", "seeds", *measured.values(), *(MEASURES.values() if analysed else ())]
    cells = []
    for title, of_method in by_method(rows).items():
        line = [title, str(len(of_method)), *(spread([row[name] for row in of_method]) for name in measured)]
        if analysed:
            summaries = [row.get("analysis") or {} for row in of_method]
            line += [spread([summary.get(name) for summary in summaries], 2) for name in MEASURES]
        cells.append(line)
    return columns, cells


def as_markdown(suite: str, rows: Iterable[Row]) -> str:
    """The table of a suite, with what was trained and where, and what is to be doubted; empty for no rows."""
    rows = rows_of(suite, rows)
    right = [row for row in rows if row["correct"]]
    if not right:
        return ""
    first = right[0]
    where = first["gpu"] or cpu(right)
    what = f"net {first['model']}, data {first['dataset']}, {first['epochs']} epochs, eps {_eps_255(first):g}/255"
    what += f", {counted(row['num_images'] for row in right)} test images"
    attacked = [row for row in right if row["autoattack"] is not None]
    if any(row["num_autoattack"] != row["num_images"] for row in attacked):
        what += f", {counted(row['num_autoattack'] for row in attacked)} of them for AutoAttack"
    options = sorted({option for row in right for option in row.get("autoattack_options") or ()})
    what += f" (not the standard's setting: {'; '.join(options)})" if options else ""
    what += f"; {where}, torch {first['torch']}, trained by commit {commits(right)}."
    said = doubts(rows)
    return f"{markdown(*table(rows))}\n{what}{f' {said}' if said else ''}\n"


def _eps_255(row: Row) -> float:
    evaluated = row["config"]["evaluation"].get("eps_255")
    return row["config"]["attack"]["eps_255"] if evaluated is None else evaluated


def headline(rows: list[Row]) -> str:
    """In a line: the method that is the most robust, by AutoAttack where all rows have it."""
    methods = by_method(rows)
    attack = _attack(methods)
    best = max(methods, key=lambda title: mean(row[attack] for row in methods[title]))
    clean, robust = (spread([row[name] for row in methods[best]]) for name in ("clean", attack))
    name = {"autoattack": "AutoAttack", "pgd20": "PGD-20"}[attack]
    return f"most robust of {len(methods)}: {best}, {name} {robust} %, clean {clean} %"


def _attack(methods: dict[str, list[Row]]) -> str:
    """By which robust accuracies are compared: AutoAttack where all rows have it."""
    has_all = all(row["autoattack"] is not None for own in methods.values() for row in own)
    return "autoattack" if has_all else "pgd20"


def spread(values: list[float | None], digits: int = 1) -> str:
    """Mean and, for several values, their standard deviation; `-` for none."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    average, deviation = _point(known)
    return f"{average:.{digits}f}{f' ± {deviation:.{digits}f}' if len(known) > 1 else ''}"


def pictures(folder: Path, rows: Sequence[Row]) -> None:
    """Draw a picture of each suite that has rows, by its name."""
    for suite in SUITES:
        own = rows_of(suite, rows)
        if any(row["correct"] for row in own):
            picture(folder / f"{suite}.png", own)


def picture(path: Path, rows: list[Row]) -> None:
    """Draw a PNG: clean against robust accuracy of each method, the paper's figures beside ours.

    Robust is AutoAttack where all rows have it, else PGD-20. Whiskers are standard deviations over seeds. Standard
    training, which has next to none, is left out: it would press all others together.
    """
    methods = by_method(rows)
    first, attack = next(iter(methods.values()))[0], _attack(methods)
    ours = {
        title: (_point([row["clean"] for row in own]), _point([row[attack] for row in own]))
        for title, own in methods.items()
        if title != TITLES["standard"] or len(methods) == 1
    }
    net = first["model"] if first["model"] in PAPER else "resnet18"
    theirs = {TITLES[name]: ((clean, 0.0), (robust, 0.0)) for name, (clean, robust) in PAPER[net].items()}
    with figure_of(path, 1, 2, (11, 4.6)) as (figure, (axes,)):
        names = list(dict.fromkeys([*ours, *theirs]))
        _panel(axes[0], ours)
        _panel(axes[1], theirs)
        num_seeds = max(map(len, methods.values()))
        seeds = f"{num_seeds} seeds" if num_seeds > 1 else "one seed"
        robust = {"autoattack": "AutoAttack", "pgd20": f"PGD-20, {first['num_images']:,} images"}[attack]
        axes[0].set(title=f"here: net {first['model']} on {first['dataset']}, {seeds}", ylabel=f"{robust}, %")
        axes[1].set(title=f"the AR-AT paper: net {net} on CIFAR-10", ylabel="AutoAttack as its code runs it, %")
        handles, labels = axes[0].get_legend_handles_labels()
        other = dict(zip(*reversed(axes[1].get_legend_handles_labels()), strict=True))
        known = {**other, **dict(zip(labels, handles, strict=True))}
        figure.legend([known[name] for name in names], names, loc="outside lower center", ncols=5, frameon=False)


def _point(values: list[float]) -> tuple[float, float]:
    return mean(values), stdev(values) if len(values) > 1 else 0.0


def _panel(axes: Any, points: dict[str, tuple[tuple[float, float], tuple[float, float]]]) -> None:
    # A method has one mark in all pictures.
    markers, known = "osD^vP*X<>hpd8", list(TITLES.values())
    for name, ((clean, clean_spread), (robust, robust_spread)) in points.items():
        title = name.removesuffix(PUBLISHED)
        at = known.index(title) if title in known else len(known)
        axes.errorbar(
            clean,
            robust,
            xerr=clean_spread or None,
            yerr=robust_spread or None,
            fmt=markers[at % len(markers)],
            color=COLOURS[at % len(COLOURS)],
            markersize=8,
            alpha=0.85,
            capsize=3,
            linestyle="none",
            label=name,
        )
    axes.set_xlabel("clean accuracy, %")
    axes.grid(alpha=0.3)
    axes.margins(0.12)
