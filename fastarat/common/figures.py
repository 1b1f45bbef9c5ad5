"""Pictures: colours, and one frame for every figure."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

from fastarat.common.files import write_atomically

# Colour-blind safe (Okabe and Ito, 2008).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")


def more_colours() -> Iterator[Any]:
    """Ten, again and again."""
    from matplotlib import colormaps

    return cycle(colormaps["tab10"].colors)  # type: ignore[attr-defined]


@contextmanager
def figure_of(
    path: Path, rows: int, columns: int, size: tuple[float, float], title: str = "", **options: Any
) -> Iterator[tuple[Any, Any]]:
    """A figure and its axes [rows, columns] to draw on, written at the end as what the file's name ends in, png or svg.
    `size` is in inches; `options` are those of `pyplot.subplots`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    plt.rcParams["text.parse_math"] = False  # a name may hold a dollar
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False, **options)
    if title:
        figure.suptitle(title, fontsize=11)
    try:
        yield figure, axes
        how: dict[str, Any] = {"format": path.suffix[1:], "dpi": 130}
        if path.suffix == ".svg":  # for a page, which has colours and fonts of its own
            how |= {"transparent": True, "metadata": dict.fromkeys(("Creator", "Date", "Format", "Type"))}
        with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "fastarat"}):
            write_atomically(path, lambda temporary: figure.savefig(temporary, **how))
    finally:
        plt.close(figure)


def finish(axes: Any, **place: Any) -> None:
    """Grid, frame, and a legend at `place`, where it covers nothing."""
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=7, **place)
