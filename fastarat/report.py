"""Pictures of runs: learning curves, and where a training step's time goes."""

from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

from fastarat.console import one_line
from fastarat.files import write_atomically

# Colour-blind safe (Okabe and Ito, 2008).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")


def learning_curves(path: Path, runs: dict[str, list[dict[str, Any]]], title: str) -> None:
    """Draw loss and accuracies over epochs as a PNG.

    `runs`: the lines of `metrics.jsonl` by the name each run gets in the legend.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    plt.rcParams["text.parse_math"] = False  # a name may hold a dollar
    few = len(runs) <= len(COLOURS)  # else names in one of the two legends have to do
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for colour, (name, lines) in zip(COLOURS if few else _more_colours(), runs.items(), strict=False):
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
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=130))
    plt.close(figure)


def _more_colours() -> Iterator[Any]:
    """Ten, again and again."""
    from matplotlib import colormaps

    return cycle(colormaps["tab10"].colors)  # type: ignore[attr-defined]


def _evaluation_of(runs: dict[str, list[dict[str, Any]]]) -> str:
    found = [line["evaluation"] for lines in runs.values() for line in lines if "evaluation" in line]
    if not found:
        return ""
    first = found[0]
    num_attacked, kind = first["num_images"], f"{first['images']} images"
    if first.get("num_clean_images", num_attacked) == num_attacked:
        return f"{num_attacked:,} {kind}, robust against PGD-{first['steps']}"
    return f"{first['num_clean_images']:,} {kind}, {num_attacked:,} of them against PGD-{first['steps']}"


def profile_picture(path: Path, profile: dict[str, Any]) -> None:
    """Draw a PNG of each part's share of a step's time, and of how near it is to its roof.

    `profile`: what `profile.json` holds (`fastarat.engine.profile`).
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    plt.rcParams["text.parse_math"] = False
    rows = profile["parts"]
    names = [row["part"] for row in rows]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained", sharey=True)
    shares = [100 * row["share"] for row in rows]
    labels = [f"{share:.0f} %  ({row['ms']:.3g} ms)" for share, row in zip(shares, rows, strict=True)]
    bars = left.barh(names, shares, color=[*[COLOURS[0]] * (len(rows) - 1), "0.6"])
    left.bar_label(bars, labels, padding=4, fontsize=9)
    left.set(xlabel="share of the step's time, %", xlim=(0, 1.35 * max(shares)))
    left.set_title(f"{profile['recipe']}: {profile['ms_a_step']:.3g} ms a step", fontsize=10)
    roofs = [100 * (row["roof_share"] or 0) for row in rows]
    bars = right.barh(names, [min(roof, 100) for roof in roofs], color=COLOURS[2])
    known = [f"{roof:.2g} %" if roof < 10 else f"{roof:.0f} %" for roof in roofs]
    labels = [text if row["roof_share"] is not None else "" for text, row in zip(known, rows, strict=True)]
    right.axvline(100, color="0.3", linewidth=1, linestyle="--", zorder=0)
    for label in right.bar_label(bars, labels, padding=4, fontsize=9):
        label.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1})
    right.set(xlabel="share of its own roof, %", xlim=(0, 125))
    settings = f"batch {profile['batch']}, {profile['dtype']}, kernels {profile['kernels']}, {profile['compile']}"
    right.set_title(f"{profile['device']}, {settings}", fontsize=10)
    left.invert_yaxis()
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=130))
    plt.close(figure)
