"""The two ways to compute: every kernel as plain PyTorch, or by Triton where there is a kernel for it. They mix."""

from collections.abc import Callable
from dataclasses import dataclass, fields

from torch import Tensor

from fastarat_kernels import augment, pgd_step, pooled_features
from fastarat_kernels.augment import twin as augment_twin
from fastarat_kernels.pgd_step import twin as pgd_twin
from fastarat_kernels.pooled_features import twin as pooled_twin


@dataclass(frozen=True)
class Kernels:
    """One function for each kernel, with the signature of its twin."""

    name: str
    fused_batch_norm: bool
    """batch-norm, residual and ReLU of both branches in one op; else layer by layer, as PyTorch has them"""
    start_point: Callable[..., Tensor]
    pgd_step: Callable[..., Tensor]
    pooled_features: Callable[[Tensor], Tensor]
    augment: Callable[..., Tensor]


PYTORCH = Kernels(
    "pytorch", False, pgd_twin.start_point, pgd_twin.pgd_step, pooled_twin.pooled_features, augment_twin.augment
)
TRITON = Kernels(
    "triton", True, pgd_step.start_point, pgd_step.pgd_step, pooled_features.pooled_features, augment.augment
)
NAMES = tuple(field.name for field in fields(Kernels) if field.name != "name")
"""of the kernels, each of which either can compute"""
