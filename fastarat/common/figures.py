"""Pictures: colours, and one frame for every figure."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

from fastarat.common.files import write_atomically

# Colour-blind safe (Okabe and Ito, 2008).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")

_SHOWN = "\u200b"
"""before the label of a legend that begins with '_', which matplotlib leaves out; nobody sees it"""
_OF_A_GLYPH = r"Glyph \d+ "
"""what matplotlib warns of where its font lacks a letter: a page is read in the browser's, elsewhere a box stands"""


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
        settings = plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "fastarat"})
        with settings, _no_date(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", _OF_A_GLYPH)
            write_atomically(path, lambda temporary: figure.savefig(temporary, **how))
    finally:
        plt.close(figure)


@contextmanager
def _no_date() -> Iterator[None]:
    """A block in which the environment names no date. No figure holds one, but matplotlib reads it all the same when it
    lays an SVG out, and fails where it is no number."""
    date = os.environ.pop("SOURCE_DATE_EPOCH", None)
    try:
        yield
    finally:
        if date is not None:
            os.environ["SOURCE_DATE_EPOCH"] = date


def finish(axes: Any, **place: Any) -> None:
    """Grid, frame, and a legend at `place`, where it covers nothing."""
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    legend(axes, fontsize=7, **place)


def label_of(name: str) -> str:
    """A name as the label of something that `legend` names, whatever it begins with."""
    return f"{_SHOWN}{name}" if name.startswith("_") else name


def legend(axes: Any, **look: Any) -> None:
    """A legend without a frame of what has a label; `look` is that of matplotlib's."""
    for text in axes.legend(frameon=False, **look).get_texts():
        text.set_text(text.get_text().removeprefix(_SHOWN))
