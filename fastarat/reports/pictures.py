"""A report's figures: drawn by matplotlib, handed on as SVG that takes the page's colours and fonts."""

import hashlib
import re
import tempfile
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fastarat.common.console import one_line
from fastarat.common.figures import COLOURS, figure_of, finish, label_of, more_colours
from fastarat.evaluation.outcomes import Outcomes
from fastarat.reports.facts import Facts
from fastarat.reports.published import PAPER, TITLES
from fastarat.runs.metrics import attack_name

SIZE = (5.2, 3.4)
"""inches of a figure that a phone can show"""
LONGEST_LABEL = 40
"""characters of an axis's label in a line"""
MOST_POINTS = 60
"""of a curve that are marked"""
MOST_BARS = 20
"""classes that are named below their bars"""


def as_svg(draw: Callable[..., None], *args: Any, alt: str) -> Markup:
    """What `draw(path, *args)` writes, to stand in a page: named `alt` for who cannot see it, its ids its own, black in
    the page's colour."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figure.svg"
        draw(path, *args)
        text = path.read_text(encoding="utf-8")
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    own = f"f{hashlib.sha256((alt + text).encode()).hexdigest()[:8]}-"
    text = re.sub(r'\b(id=")', rf"\1{own}", text)
    text = re.sub(r'((?:xlink:)?href="#|url\(#)', rf"\1{own}", text)
    text = text.replace("#000000", "currentColor")
    head, _, body = text.partition(">")
    (box,) = re.findall(r'viewBox="([\d .]+)"', head)
    return Markup('<svg role="img" aria-label="{}" viewBox="{}">').format(one_line(alt), box) + Markup(body)


def loss_curves(path: Path, runs: Sequence[Facts]) -> None:
    """The training loss over the epochs."""
    with figure_of(path, 1, 1, SIZE) as (_, axes):
        for facts, colour in zip(runs, _colours(runs), strict=False):
            epochs = facts.epochs
            values = [line["train"]["loss"] for line in epochs]
            axes[0, 0].plot(
                [line["epoch"] for line in epochs], values, _mark(epochs), color=colour, label=_label(facts)
            )
        axes[0, 0].set(xlabel="epoch", ylabel="training loss")
        _legend(axes[0, 0])


def accuracy_curves(path: Path, runs: Sequence[Facts]) -> None:
    """Accuracy of clean images (solid) and under attack (dashed) over the epochs."""
    with figure_of(path, 1, 1, SIZE) as (_, axes):
        for facts, colour in zip(runs, _colours(runs), strict=False):
            held = [line for line in facts.epochs if "evaluation" in line]
            for kind, style in (("clean", "-"), ("robust", "--")):
                values = [line["evaluation"][kind] for line in held]
                what = kind if kind == "clean" else attack_of(facts)
                label = f"{_label(facts)}, {what}" if len(runs) > 1 else what
                epochs = [line["epoch"] for line in held]
                mark = "." if len(held) <= MOST_POINTS else ""
                axes[0, 0].plot(epochs, values, style, marker=mark, color=colour, label=label)
        axes[0, 0].set(xlabel="epoch", ylabel="accuracy, %", ylim=(0, 100))
        _legend(axes[0, 0])


def attack_of(facts: Facts) -> str:
    """What the evaluations of a run's epochs attacked by; '' where there were none."""
    return " or ".join(dict.fromkeys(attack_name(line["evaluation"]) for line in facts.epochs if "evaluation" in line))


def trade_off(path: Path, points: Mapping[str, tuple[float, float]], net: str | None, attack: str) -> None:
    """Clean against robust accuracy: the runs' points, and the paper's of one of its nets as crosses."""
    with figure_of(path, 1, 1, SIZE) as (_, axes):
        for (name, (clean, robust)), colour in zip(points.items(), _colours(list(points)), strict=False):
            axes[0, 0].plot(clean, robust, "o", markersize=9, color=colour, label=label_of(one_line(name, 48)))
        for name, (clean, robust) in PAPER[net].items() if net else ():
            axes[0, 0].plot(clean, robust, "x", color="0.5")
            axes[0, 0].annotate(TITLES[name], (clean, robust), xytext=(3, 3), textcoords="offset points", fontsize=7)
        if net:
            axes[0, 0].plot([], [], "x", color="0.5", label=f"the paper's {net}, its AutoAttack")
        under = textwrap.fill(f"accuracy under {attack}, %", LONGEST_LABEL)
        axes[0, 0].set(xlabel="clean accuracy, %", ylabel=under)
        axes[0, 0].margins(0.15)
        for limits, set_limits in (
            (axes[0, 0].get_xlim(), axes[0, 0].set_xlim),
            (axes[0, 0].get_ylim(), axes[0, 0].set_ylim),
        ):
            set_limits(max(limits[0], -2), min(limits[1], 102))
        finish(axes[0, 0])


def class_bars(path: Path, outcomes: Outcomes) -> None:
    """Clean and robust accuracy of each class, the least robust first."""
    clean, robust = (outcomes.per_class(stage) for stage in ("clean", list(outcomes.flags)[-1]))
    order = sorted((i for i, value in enumerate(robust) if value is not None), key=lambda i: (robust[i], clean[i]))
    with figure_of(path, 1, 1, SIZE) as (_, axes):
        heights = [[values[i] for i in order] for values in (clean, robust)]
        if len(order) <= MOST_BARS:
            names = [one_line(outcomes.classes[i], 14) for i in order]
            axes[0, 0].bar(range(len(order)), heights[0], 0.9, color=COLOURS[0], alpha=0.45, label="clean")
            axes[0, 0].bar(range(len(order)), heights[1], 0.6, color=COLOURS[1], label=outcomes.name)
            axes[0, 0].set_xticks(range(len(order)), names, rotation=45, ha="right", fontsize=8)
        else:
            axes[0, 0].plot(heights[0], ".", markersize=3, color=COLOURS[0], alpha=0.45, label="clean")
            axes[0, 0].plot(heights[1], color=COLOURS[1], label=outcomes.name)
            axes[0, 0].set(xlabel="classes, the least robust first")
        axes[0, 0].set(ylabel="accuracy, %", ylim=(0, 100))
        finish(axes[0, 0], loc="lower left", bbox_to_anchor=(0, 1), ncols=2)


def surfaces(path: Path, surface: Mapping[str, Any]) -> None:
    """The loss round some images, of an analysis: along the gradient to the right, along random signs upwards."""
    import numpy as np

    radii, grids = np.array(surface["radii"], float), np.array(surface["loss"], float)
    columns = min(len(grids), 2)
    rows = -(-len(grids) // columns)
    top = max(float(np.nanmax(grids)), 1e-3)
    with figure_of(path, rows, columns, (2.6 * columns + 0.6, 2.6 * rows)) as (figure, axes):
        drawn = None
        for panel in axes.flat[len(grids) :]:
            panel.set_visible(False)
        for panel, image, grid in zip(axes.flat, surface["images"], grids, strict=False):
            box = (radii[0], radii[-1], radii[0], radii[-1])
            drawn = panel.imshow(grid.T, origin="lower", extent=box, vmin=0, vmax=top, cmap="cividis")
            panel.plot([-1, 1, 1, -1, -1], [-1, -1, 1, 1, -1], "--", color="white", linewidth=1)
            panel.set_title(f"image {image}", fontsize=9)
        if drawn:
            figure.colorbar(drawn, ax=axes.ravel().tolist(), label="cross-entropy", shrink=0.8)


def _colours(runs: Sequence[Any]) -> Any:
    return COLOURS if len(runs) <= len(COLOURS) else more_colours()


def _label(facts: Facts) -> str:
    return label_of(one_line(facts.name, 32))


def _mark(epochs: Sequence[Any]) -> str:
    return ".-" if len(epochs) <= MOST_POINTS else "-"


def _legend(axes: Any) -> None:
    axes.xaxis.get_major_locator().set_params(integer=True)
    finish(axes)
