"""Batches from a resident uint8 set: gather, crop, flip and scale."""

from fastarat_kernels.augment.op import augment

__all__ = ["augment"]
