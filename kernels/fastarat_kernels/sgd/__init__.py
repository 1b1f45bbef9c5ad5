"""SGD with momentum over flat buffers, shadow weights and an average of the weights in the same pass."""

from fastarat_kernels.sgd.op import sgd

__all__ = ["sgd"]
