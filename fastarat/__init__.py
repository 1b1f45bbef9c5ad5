"""Adversarial training of image classifiers as fast as the GPU allows.

The parts of the command line, from Python: see each one's docstring.

    model = fastarat.build_model("resnet18", num_classes=10)
    x_adv = fastarat.perturb(model, x, y, fastarat.AttackConfig())
    run = fastarat.train(fastarat.recipe("digits-arat"), Path("runs/first"))
    result = fastarat.evaluate(model, images, labels, attack="autoattack", eps=8 / 255)
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

from fastarat.common.version import __version__

if sys.platform == "win32":
    raise ImportError("fastarat does not run on Windows itself: install it in WSL2 (wsl --install)")

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fastarat.attacks.pgd import perturb
    from fastarat.common.errors import UserError, WorkError
    from fastarat.config import Config
    from fastarat.config.attack import AttackConfig
    from fastarat.config.method import (
        ARATConfig,
        ARRESTConfig,
        ATConfig,
        LBGATConfig,
        MARTConfig,
        StandardConfig,
        TRADESConfig,
    )
    from fastarat.config.recipes import recipe
    from fastarat.data.images.dataset import Images
    from fastarat.data.open import open_dataset
    from fastarat.evaluation.accuracies import AccuracySettings, accuracies
    from fastarat.evaluation.result import Evaluation
    from fastarat.methods.registry import build_method
    from fastarat.models.convert import convert_to_split_batch_norm, plain_branch
    from fastarat.models.registry import build_model
    from fastarat.models.split_batch_norm import SplitBatchNorm2d, forward
    from fastarat.runs.export import export
    from fastarat.runs.weights import load_model
    from fastarat.training.train import train

# Where each public name lives: imported when it is first asked for, so that `import fastarat` costs nothing.
_HOMES = {
    "ARATConfig": "config.method",
    "ARRESTConfig": "config.method",
    "ATConfig": "config.method",
    "AccuracySettings": "evaluation.accuracies",
    "AttackConfig": "config.attack",
    "Config": "config",
    "Evaluation": "evaluation.result",
    "Images": "data.images.dataset",
    "LBGATConfig": "config.method",
    "MARTConfig": "config.method",
    "SplitBatchNorm2d": "models.split_batch_norm",
    "StandardConfig": "config.method",
    "TRADESConfig": "config.method",
    "UserError": "common.errors",
    "WorkError": "common.errors",
    "accuracies": "evaluation.accuracies",
    "build_method": "methods.registry",
    "build_model": "models.registry",
    "convert_to_split_batch_norm": "models.convert",
    "export": "runs.export",
    "forward": "models.split_batch_norm",
    "load_model": "runs.weights",
    "open_dataset": "data.open",
    "perturb": "attacks.pgd",
    "plain_branch": "models.convert",
    "recipe": "config.recipes",
    "train": "training.train",
}

__all__ = [
    "ARATConfig",
    "ARRESTConfig",
    "ATConfig",
    "AccuracySettings",
    "AttackConfig",
    "Config",
    "Evaluation",
    "Images",
    "LBGATConfig",
    "MARTConfig",
    "SplitBatchNorm2d",
    "StandardConfig",
    "TRADESConfig",
    "UserError",
    "WorkError",
    "__version__",
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


def evaluate(
    model: "nn.Module",
    images: "Tensor",
    labels: "Tensor",
    attack: str = "autoattack",
    *,
    num_images: int | None = None,
    **options: Any,
) -> "Evaluation":
    """Attack any model, in eval mode, from images in [0, 1] to logits: `images` [N, C, H, W], floats in [0, 1] or
    bytes, of which the first `num_images` (None: all) count; `labels`: int64 [N].

    `attack` is `autoattack` (apgd-ce, apgd-t, fab-t and square), one of these, `pgd` (of `steps` steps of `step`, eps
    / 4 by default, from each of `restarts` starts; an image is broken by any iterate), `cw` (the same on the margin),
    `none`, or several, separated by commas. `options` are the other `EvaluationSettings`, by their names: `norm`,
    `eps`, `seed`, `batch`, `targets`, `steps`, `restarts`, `step`, `dtype`, `engine`; and what the evaluation of these
    settings takes: `device`, `state`, `budget`, `advance`.

    Raises `UserError` for bad settings, images, labels or models, `WorkError` where the GPU's memory is too small, or
    the model fails on a batch.
    """
    from dataclasses import fields

    from fastarat.common.errors import UserError
    from fastarat.common.typed import fits, plain
    from fastarat.config.evaluation import EvaluationSettings
    from fastarat.evaluation.evaluate import checked, evaluate

    if num_images is not None:
        most = plain(num_images)
        if not fits(most, int) or most < 1:
            raise UserError(f"num_images is {num_images!r}: give a whole number of 1 or more")
        images, labels = (given[:most] for given in checked(images, labels))
    own = {field.name for field in fields(EvaluationSettings)} & options.keys()
    settings = EvaluationSettings(attack, **{name: options.pop(name) for name in own})
    return evaluate(model, images, labels, settings, **options)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fastarat' has no attribute {name!r}")
    return getattr(importlib.import_module(f"fastarat.{_HOMES[name]}"), name)
