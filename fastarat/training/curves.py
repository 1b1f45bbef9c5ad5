"""Learning curves of runs, as a picture."""

from pathlib import Path
from typing import Any

from fastarat.common.console import one_line
from fastarat.common.figures import COLOURS, figure_of, more_colours


def learning_curves(path: Path, runs: dict[str, list[dict[str, Any]]], title: str) -> None:
    """Draw loss and accuracies over epochs as a PNG.

    `runs`: the lines of `metrics.jsonl` by the name each run gets in the legend.
    """
    few = len(runs) <= len(COLOURS)  # else names in one of the two legends have to do
    with figure_of(path, 1, 2, (10, 3.8)) as (_, ((left, right),)):
        for colour, (name, lines) in zip(COLOURS if few else more_colours(), runs.items(), strict=False):
            epochs = [line for line in lines if "train" in line]
            left.plot([e["epoch"] for e in epochs], [e["train"]["loss"] for e in epochs], color=colour, label=name)
            measured = [line for line in epochs if "evaluation" in line]
            for kind, style in (("clean", "-"), ("robust", "--")):
                values = [e["evaluation"][kind] for e in measured]
                label = f"{name}, {kind}" if few else kind if name == next(iter(runs)) else None
                right.plot([e["epoch"] for e in measured], values, style, marker=".", color=colour, label=label)
        left.set(xlabel="epoch", ylabel="training loss", title=one_line(title, 60))
        right.set(xlabel="epoch", ylabel="accuracy, %", ylim=(0, 100), title=_evaluation_of(runs))
        for axes in (left, right):
            axes.grid(alpha=0.3)
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.legend(frameon=False, fontsize=8)


def _evaluation_of(runs: dict[str, list[dict[str, Any]]]) -> str:
    found = [line["evaluation"] for lines in runs.values() for line in lines if "evaluation" in line]
    if not found:
        return ""
    first = found[0]
    num_attacked, kind = first["num_images"], f"{first['images']} images"
    if first.get("num_clean_images", num_attacked) == num_attacked:
        return f"{num_attacked:,} {kind}, robust against PGD-{first['steps']}"
    return f"{first['num_clean_images']:,} {kind}, {num_attacked:,} of them against PGD-{first['steps']}"
