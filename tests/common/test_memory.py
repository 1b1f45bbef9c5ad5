"""Whoever takes memory says in words of its own that there is none left."""

import pytest
import torch

from fastarat.common.memory import memory_that_ran_out


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "GPU memory"),
        (torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be reported later"), "GPU memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "GPU memory"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "GPU memory"),
        (RuntimeError("Triton Error [CUDA]: out of memory"), "GPU memory"),
        (RuntimeError("ncclUnhandledCudaError: Last error:\nCuda failure 2 'out of memory'"), "GPU memory"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:132] DefaultCPUAllocator: can't allocate memory"), "memory"),
        (MemoryError(), "memory"),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), ""),
        (RuntimeError("Triton Error [CUDA]: device kernel image is invalid"), ""),
    ],
)
def test_memory_that_ran_out_is_known_by_whoever_says_so(error, memory):
    assert memory_that_ran_out(error) == memory
