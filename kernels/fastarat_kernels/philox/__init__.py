"""Counter-based random numbers: Philox 4x32-10."""

from fastarat_kernels.philox.twin import Stream, normal, permutation, philox, uniform, words

__all__ = ["Stream", "normal", "permutation", "philox", "uniform", "words"]
