"""The learning curves under a notebook's cell, drawn anew after each epoch."""

import sys

from fastarat.runs.run import Run


def in_notebook() -> bool:
    """Whether this is the kernel of a notebook (Jupyter and what is built on it), and not a terminal."""
    ipython = sys.modules.get("IPython")  # a kernel has imported it
    shell = ipython.get_ipython() if ipython else None
    return getattr(shell, "kernel", None) is not None


class Notebook:
    """One figure that stays where the cell began to show it: the run's `learning_curves.png` as it is by then."""

    def __init__(self, run: Run, first_step: int):
        self.run, self.recipe, self.shown = run, run.config().recipe, None

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Draw what the run's lines say. Raises `WorkError` if the file cannot be written."""
        from IPython.display import Image, display

        from fastarat.training.reporting import learning_curves  # matplotlib: a second to import

        path = self.run.path / "learning_curves.png"
        learning_curves(path, {self.recipe: self.run.metrics()}, str(self.run.path))
        said = ", ".join(f"{tag} {number:.4g}" for tag, number in numbers.items())
        figure = Image(
            data=path.read_bytes(), alt=f"learning curves of {self.run.path.name}; after step {step}: {said}"
        )
        if self.shown is None:
            self.shown = display(figure, display_id=True)
        else:
            self.shown.update(figure)

    def close(self, code: int) -> None:
        """The figure stays as it is."""
