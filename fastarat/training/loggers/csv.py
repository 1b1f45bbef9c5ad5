"""`metrics.csv` in the run's directory: a row an epoch, for spreadsheets and data frames."""

import csv
import io

from fastarat.common.files import write_text
from fastarat.runs.run import Run
from fastarat.training.loggers.logger import numbers_of

NAME = "metrics.csv"


class CSV:
    """Rewrites the whole file after each epoch, from the run's own lines: columns may come later, rows are as there."""

    def __init__(self, run: Run, first_step: int):
        self.path = run.path / NAME
        self.rows = [{"step": line["step"], **numbers_of(line)} for line in run.metrics() if "train" in line]
        self.rows = [row for row in self.rows if row["step"] <= first_step]

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Add a row. Raises `WorkError` if the file cannot be written."""
        self.rows.append({"step": step, **numbers})
        text, columns = io.StringIO(newline=""), list(dict.fromkeys(name for row in self.rows for name in row))
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(self.path, text.getvalue())

    def close(self, code: int) -> None:
        """Nothing is left to write."""
