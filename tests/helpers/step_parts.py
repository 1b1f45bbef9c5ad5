"""Builds what a training step works with, around small nets."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from fastarat_kernels.implementations import PYTORCH, Kernels
from torch import nn

from fastarat.common.distributed import World
from fastarat.config.attack import AttackConfig
from fastarat.config.model import MODELS
from fastarat.config.training import OptimizerConfig
from fastarat.methods.method import Method
from fastarat.models.split_batch_norm import forward_context
from fastarat.training.step.precision import Dtype, Precision
from fastarat.training.step.train_step import StepParts

CPU = torch.device("cpu")


@contextmanager
def nets_of_one_block() -> Iterator[None]:
    """Nets and teachers named `digits` and `tiny` are built with one block, which is traced in a fraction of the time.

    It has all that a step meets: batch-norms with and without a residual, aligned layers, pooling and the last layer.
    """
    one_block = ("fastarat.models.resnet:ResNet", {"widths": (16,), "strides": (1,), "num_blocks": (1,)})
    with patch.dict(MODELS, digits=one_block, tiny=one_block):
        yield


def parts_of(
    net: nn.Module,
    method: Method,
    attack: AttackConfig,
    precision: Dtype = "fp64",
    seed: int = 3,
    device: torch.device = CPU,
    kernels: Kernels = PYTORCH,
    world: World | None = None,
    optimizer: OptimizerConfig | None = None,
) -> StepParts:
    """Parts around `net` and `method`, which have to be in the precision's parameter dtype."""
    for part in (net, method):
        context = forward_context(part)
        if context is not None:
            context.kernels = kernels
    return StepParts(
        model=net,
        method=method,
        attack=attack,
        optimizer=optimizer or OptimizerConfig(),
        precision=Precision(precision, device),
        world=world or World(device),
        kernels=kernels,
        seed=seed,
    )
