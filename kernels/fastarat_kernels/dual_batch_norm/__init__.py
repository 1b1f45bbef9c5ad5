"""Batch-norm of a clean and an adversarial half in one launch, with the residual add and the ReLU behind it."""

from fastarat_kernels.dual_batch_norm.op import dual_batch_norm

__all__ = ["dual_batch_norm"]
