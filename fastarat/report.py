"""Pictures of runs: learning curves."""

from pathlib import Path
from typing import Any

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

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for colour, (name, lines) in zip(COLOURS, runs.items(), strict=False):
        epochs = [line for line in lines if "train" in line]
        left.plot([e["epoch"] for e in epochs], [e["train"]["loss"] for e in epochs], color=colour, label=name)
        measured = [line for line in epochs if "evaluation" in line]
        for kind, style in (("clean", "-"), ("robust", "--")):
            values = [e["evaluation"][kind] for e in measured]
            label = f"{name}, {kind}"
            right.plot([e["epoch"] for e in measured], values, style, marker=".", color=colour, label=label)
    left.set(xlabel="epoch", ylabel="training loss", title=title)
    right.set(xlabel="epoch", ylabel="accuracy, %", ylim=(0, 100), title=_evaluation_of(runs))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(frameon=False, fontsize=8)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=130))
    plt.close(figure)


def _evaluation_of(runs: dict[str, list[dict[str, Any]]]) -> str:
    found = [line["evaluation"] for lines in runs.values() for line in lines if "evaluation" in line]
    if not found:
        return ""
    return f"{found[0]['num_images']:,} {found[0]['images']} images, robust against PGD-{found[0]['steps']}"
