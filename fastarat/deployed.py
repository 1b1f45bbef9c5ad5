"""The model that a run or a file stands for."""

from dataclasses import replace
from pathlib import Path

from torch import nn

from fastarat.checkpoint import Description, load_checkpoint, load_model
from fastarat.console import notice
from fastarat.errors import UserError
from fastarat.models.convert import plain_branch
from fastarat.models.registry import build_model
from fastarat.models.settings import Branch
from fastarat.run import Run


def load_deployed(path: Path, checkpoint: str | None = None, branch: Branch = "adv") -> tuple[nn.Module, Description]:
    """The plain net of a run (its deployed weights, or a branch of a checkpoint) or of a model.safetensors."""
    if not path.exists():
        raise UserError(f"{path} does not exist: give a run's directory, a model.safetensors or MODULE:FUNCTION")
    if path.is_file():
        if checkpoint is not None or branch != "adv":
            raise UserError(f"{path} holds one branch: --checkpoint and --branch need a run's directory")
        return load_model(path)
    exported = path / "model.safetensors"
    if not (path / "config.json").exists() and exported.exists():
        return load_deployed(exported, checkpoint, branch)
    run = Run(path)
    data = run.config().data  # as it was given: a path that means something here
    if checkpoint is None and branch == "adv" and run.weights_file.exists():
        model, description = load_model(run.weights_file)
        return model, replace(description, data=data)
    if checkpoint is None and branch == "adv":
        notice(f"{path} has not finished: taking its newest checkpoint")
    model, description = from_checkpoint(run.checkpoint(checkpoint or "last"), branch)
    return model, replace(description, data=data)


def from_checkpoint(path: Path, branch: Branch) -> tuple[nn.Module, Description]:
    """One branch of a training checkpoint as a plain net; the EMA average where the run keeps one."""
    state = load_checkpoint(path)
    try:
        description = Description.from_dict(state["description"])
        averaged = state["average"] if description.averaging == "ema" and state["average"]["num_snapshots"] else state
        kind = state["batch_norm"]
        model = build_model(description.model, description.num_classes, description.in_channels, kind)
        model.load_state_dict(averaged["model"])
    except (KeyError, TypeError, RuntimeError) as e:
        raise UserError(f"{path} is no training checkpoint of this version ({str(e).splitlines()[0]})") from None
    if branch == "clean" and kind != "split":
        raise UserError(f"{path}: this model was trained with one set of batch-norms; it has no clean branch")
    return plain_branch(model, branch), replace(description, branch=branch)
