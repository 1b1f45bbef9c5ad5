"""The two ways to compute: every kernel as plain PyTorch, or by Triton where there is a kernel for it. They mix."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

from torch import Tensor

from fastarat_kernels import augment, pgd_step, pooled_features
from fastarat_kernels.augment import twin as augment_twin
from fastarat_kernels.pgd_step import twin as pgd_twin
from fastarat_kernels.pooled_features import twin as pooled_twin

MapShape = tuple[int, int, int]
"""of an image's feature map: channels, height, width"""


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
    unfused: tuple[MapShape, ...] = ()
    """maps that PyTorch normalises all the same"""

    def fuses(self, map_shape: Sequence[int]) -> bool:
        """Whether the batch-norm of such maps (C, H, W) is the fused one."""
        return self.fused_batch_norm and tuple(map_shape) not in self.unfused

    def without(self, names: Sequence[str]) -> "Kernels":
        """The same, with PyTorch in the place of what these `names` stand for: see `can_be_left_out`."""
        plain = {name: getattr(PYTORCH, name) for name in names if name in NAMES}
        return replace(self, **plain, unfused=tuple(filter(None, map(_shape_in, names))))


PYTORCH = Kernels(
    "pytorch", False, pgd_twin.start_point, pgd_twin.pgd_step, pooled_twin.pooled_features, augment_twin.augment
)
TRITON = Kernels(
    "triton", True, pgd_step.start_point, pgd_step.pgd_step, pooled_features.pooled_features, augment.augment
)
NAMES = tuple(field.name for field in fields(Kernels) if field.name not in ("name", "unfused"))
"""of the kernels, each of which either can compute"""
_OF_A_SHAPE = re.compile("fused_batch_norm@([1-9][0-9]{0,5})x([1-9][0-9]{0,5})x([1-9][0-9]{0,5})")


def of_shape(map_shape: MapShape) -> str:
    """The name of the fused batch-norm of such maps: `fused_batch_norm@512x4x4`."""
    return f"fused_batch_norm@{'x'.join(map(str, map_shape))}"


def can_be_left_out(name: object) -> bool:
    """Whether it is the name of a kernel, or that of the fused batch-norm of one shape."""
    return isinstance(name, str) and (name in NAMES or _shape_in(name) is not None)


def _shape_in(name: str) -> MapShape | None:
    match = _OF_A_SHAPE.fullmatch(name)
    if match is None:
        return None
    channels, height, width = map(int, match.groups())
    return channels, height, width
