"""ReLU and global average pooling of a feature map, in one pass."""

from fastarat_kernels.pooled_features.op import pooled_features

__all__ = ["pooled_features"]
