"""Too little memory, the GPU's or the machine's: what libraries raise for it."""

import torch

_OF_THE_MACHINE = "DefaultCPUAllocator"
"""torch's, whose error is a plain RuntimeError"""
_OF_A_GPU = (
    "CUDA error: out of memory",
    "Triton Error [CUDA]: out of memory",
    "'out of memory'",  # NCCL's
    "STATUS_ALLOC_FAILED",  # cuBLAS's, cuDNN's
)
"""what is raised where memory is taken without torch's allocator: by streams, graphs, kernels and libraries"""


def memory_that_ran_out(error: BaseException) -> str:
    """What was too small, in words, if `error` says so; empty for any other error."""
    if isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _OF_A_GPU):
        return "GPU memory"
    return "memory" if isinstance(error, MemoryError) or _OF_THE_MACHINE in str(error) else ""
