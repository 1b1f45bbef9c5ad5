"""Too little memory, the GPU's or the machine's: what libraries raise for it."""

import torch

_OF_THE_MACHINE = "DefaultCPUAllocator"
"""torch's, whose error is a plain RuntimeError"""


def memory_that_ran_out(error: BaseException) -> str:
    """What was too small, in words, if `error` says so; empty for any other error."""
    if isinstance(error, torch.OutOfMemoryError):
        return "GPU memory"
    return "memory" if isinstance(error, MemoryError) or _OF_THE_MACHINE in str(error) else ""
