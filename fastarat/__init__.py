"""Adversarial training of image classifiers as fast as the GPU allows.

The parts of the command line, from Python: see each one's docstring.

    model = fastarat.build_model("resnet18", num_classes=10)
    x_adv = fastarat.perturb(model, x, y, fastarat.AttackConfig())
    run = fastarat.train(fastarat.recipe("digits-arat"), Path("runs/first"))
    result = fastarat.evaluate(model, images, labels, attack="autoattack", eps=8 / 255)
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from fastarat.attacks.perturb import perturb
    from fastarat.attacks.settings import AttackConfig
    from fastarat.checkpoint import load_model
    from fastarat.config import Config
    from fastarat.data.dataset import ImageSet
    from fastarat.data.sources import open_dataset
    from fastarat.errors import UserError, WorkError
    from fastarat.evaluated import Evaluation
    from fastarat.evaluation import accuracies
    from fastarat.exporter import export
    from fastarat.methods.registry import build_method
    from fastarat.methods.settings import (
        ARATConfig,
        ARRESTConfig,
        ATConfig,
        LBGATConfig,
        MARTConfig,
        StandardConfig,
        TRADESConfig,
    )
    from fastarat.models.convert import convert_to_split_batch_norm, plain_branch
    from fastarat.models.registry import build_model
    from fastarat.models.split_batch_norm import SplitBatchNorm2d, forward
    from fastarat.recipes import recipe
    from fastarat.robustness import evaluate
    from fastarat.trainer import train

# Where each public name lives: imported when it is first asked for, so that `import fastarat` costs nothing.
_HOMES = {
    "ARATConfig": "methods.settings",
    "ARRESTConfig": "methods.settings",
    "ATConfig": "methods.settings",
    "AttackConfig": "attacks.settings",
    "Config": "config",
    "Evaluation": "evaluated",
    "ImageSet": "data.dataset",
    "LBGATConfig": "methods.settings",
    "MARTConfig": "methods.settings",
    "SplitBatchNorm2d": "models.split_batch_norm",
    "StandardConfig": "methods.settings",
    "TRADESConfig": "methods.settings",
    "UserError": "errors",
    "WorkError": "errors",
    "accuracies": "evaluation",
    "build_method": "methods.registry",
    "build_model": "models.registry",
    "convert_to_split_batch_norm": "models.convert",
    "evaluate": "robustness",
    "export": "exporter",
    "forward": "models.split_batch_norm",
    "load_model": "checkpoint",
    "open_dataset": "data.sources",
    "perturb": "attacks.perturb",
    "plain_branch": "models.convert",
    "recipe": "recipes",
    "train": "trainer",
}

__all__ = [
    "ARATConfig",
    "ARRESTConfig",
    "ATConfig",
    "AttackConfig",
    "Config",
    "Evaluation",
    "ImageSet",
    "LBGATConfig",
    "MARTConfig",
    "SplitBatchNorm2d",
    "StandardConfig",
    "TRADESConfig",
    "UserError",
    "WorkError",
    "accuracies",
    "build_method",
    "build_model",
    "convert_to_split_batch_norm",
    "evaluate",
    "export",
    "forward",
    "load_model",
    "open_dataset",
    "perturb",
    "plain_branch",
    "recipe",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fastarat' has no attribute {name!r}")
    return getattr(importlib.import_module(f"fastarat.{_HOMES[name]}"), name)
