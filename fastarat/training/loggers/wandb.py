"""Weights & Biases: a run of the same name, in the mode, project and entity that WANDB_MODE and its like say."""

from dataclasses import asdict
from importlib import import_module
from typing import Any

from fastarat.common.errors import UserError, first_line
from fastarat.runs.run import Run


def check_login() -> None:
    """Log in, where WANDB_MODE wants that. Raises `UserError` if that fails."""
    wandb: Any = import_module("wandb")
    if wandb.setup().settings.mode not in ("offline", "disabled"):
        try:
            wandb.login()
        except Exception as error:
            raise _without_login(error) from error


def _without_login(error: Exception) -> UserError:
    return UserError(f"--log wandb: {first_line(error)}: log in with 'wandb login', or set WANDB_MODE=offline")


class WandB:
    """Hands each epoch's numbers to wandb; WANDB_MODE=offline keeps them in the run's directory."""

    def __init__(self, run: Run, first_step: int):
        wandb: Any = import_module("wandb")
        settings = wandb.Settings(console="off", quiet=True)
        try:
            self.run = wandb.init(
                dir=str(run.path),
                name=run.path.name,
                config=asdict(run.config()),
                settings=settings,
                reinit="create_new",
            )
        except Exception as error:
            raise _without_login(error) from error

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Hand the numbers on."""
        self.run.log(numbers, step=step)

    def close(self, code: int) -> None:
        """Wait until all is sent, or written, and with which exit code the training ended."""
        self.run.finish(exit_code=code)
