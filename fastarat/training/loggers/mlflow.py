"""MLflow: a run in the experiment `fastarat`, where MLFLOW_TRACKING_URI says, else in the run's directory."""

import os
import time
from importlib import import_module

from fastarat.common.errors import UserError, first_line
from fastarat.config import by_flag
from fastarat.runs.run import Run

EXPERIMENT = "fastarat"
LONGEST_VALUE = 500
"""characters of a parameter"""


class MLflow:
    """Hands settings and each epoch's numbers to an MLflow store."""

    def __init__(self, run: Run, first_step: int):
        entities, tracking = (import_module(f"mlflow.{name}") for name in ("entities", "tracking"))
        self.metric = entities.Metric
        place = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{run.path.absolute() / 'mlflow.db'}"
        try:
            self.client = tracking.MlflowClient(place)
            found = self.client.get_experiment_by_name(EXPERIMENT)
            experiment = found.experiment_id if found else self.client.create_experiment(EXPERIMENT)
            self.run_id = self.client.create_run(experiment, run_name=run.path.name).info.run_id
            settings = [
                entities.Param(name, str(value)[:LONGEST_VALUE]) for name, value in by_flag(run.config()).items()
            ]
            self.client.log_batch(self.run_id, params=settings)
        except Exception as error:
            raise UserError(
                f"--log mlflow: {first_line(error)}: set MLFLOW_TRACKING_URI, or give another --log"
            ) from error

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Hand the numbers on."""
        now = int(1000 * time.time())
        self.client.log_batch(self.run_id, [self.metric(tag, value, now, step) for tag, value in numbers.items()])

    def close(self, code: int) -> None:
        """Mark the run as ended: finished, stopped by a signal, or failed."""
        status = "KILLED" if code > 128 else "FAILED" if code else "FINISHED"
        self.client.set_terminated(self.run_id, status)
