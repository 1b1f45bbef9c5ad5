"""Running statistics of all batch-norms moved at once."""

from fastarat_kernels.running_statistics.op import move_running_statistics

__all__ = ["move_running_statistics"]
