"""The train and eval modes of any module, nets of others included."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from fastarat.models.batch_norm import Statistics


@contextmanager
def batch_norm_mode(model: nn.Module, statistics: Statistics) -> Iterator[None]:
    """Run any module with its batch-norms in this mode; afterwards every submodule's mode is as before,
    and so, unless `train`, are all buffers."""
    modes = {module: module.training for module in switchable(model)}
    kept = {} if statistics == "train" else {b: b.clone() for b in model.buffers()}
    to_mode(model, statistics != "eval")
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
        for buffer, value in kept.items():
            buffer.copy_(value)


def switchable(model: nn.Module) -> Iterator[nn.Module]:
    """The parts of `model` that have a train and an eval mode: all but nets of `torch.export`, which compute as they
    were exported, whose train() and eval() raise, and whose `training` says nothing."""
    if isinstance(model, torch.fx.GraphModule) and "train" in vars(model):
        return
    yield model
    for child in model.children():
        yield from switchable(child)


def to_mode(model: nn.Module, training: bool) -> nn.Module:
    """`model` itself, in train or eval mode but for what has no modes (see `switchable`)."""
    try:
        return model.train(training)
    except NotImplementedError:
        for part in switchable(model):
            part.training = training
        return model
