"""Compiling one recorded launch ahead of time, without a GPU or a driver, and reading what it takes of the GPU."""

import re
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

from fastarat_kernels.launch import Launch

# Shared memory that one program may have, by architecture (CUDA C++ Programming Guide, compute capabilities).
SHARED_BYTES = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}


@dataclass(frozen=True)
class Usage:
    """What a compiled kernel takes: registers a thread, shared bytes a program, stack (spill) bytes a thread.

    `seconds`: what compiling took this time; nearly nothing from Triton's cache. `failure`: one line, or None.
    """

    registers: int | None = None
    shared_bytes: int | None = None
    spill_bytes: int | None = None
    seconds: float = 0.0
    failure: str | None = None


@dataclass(frozen=True)
class Compilation:
    """A jit function with the argument types, constants and alignments of a launch, for one architecture."""

    source: ASTSource
    options: dict[str, Any]
    architecture: int

    @cached_property
    def key(self) -> tuple[str, str, int]:
        """Equal for launches that run the same machine code."""
        return self.source.hash(), str(self.options), self.architecture


def specialise(recorded: Launch, architecture: int) -> Compilation:
    """What Triton's own launch would compile for these arguments (that of a meta tensor is an aligned pointer)."""
    kernel = recorded.kernel
    backend = make_backend(GPUTarget("cuda", architecture, 32))
    bind: Callable[..., Any] = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, types, options = bind(*recorded.arguments, **recorded.constants, num_warps=recorded.num_warps)
    parsed, signature, constants, attributes = kernel._pack_args(backend, options, bound, types, options)
    return Compilation(ASTSource(kernel, signature, constants, attributes), vars(parsed), architecture)


def compile_ahead(compilation: Compilation) -> Usage:
    """Compile, and read the usage; never raises: what went wrong is the `failure`."""
    start = time.perf_counter()
    try:
        target = GPUTarget("cuda", compilation.architecture, 32)
        compiled = triton.compile(compilation.source, target=target, options=compilation.options)
        registers, spill_bytes = _resources(compiled.asm["cubin"])
        shared_bytes = compiled.metadata.shared
    except Exception as error:
        return Usage(seconds=time.perf_counter() - start, failure=one_line(error))
    failure, limit = None, SHARED_BYTES[compilation.architecture]
    if spill_bytes:
        failure = f"spills {spill_bytes} bytes a thread"
    elif shared_bytes > limit:
        failure = f"takes {shared_bytes} bytes of shared memory, sm_{compilation.architecture} has {limit}"
    return Usage(registers, shared_bytes, spill_bytes, time.perf_counter() - start, failure)


def one_line(error: BaseException) -> str:
    """The kind of an error and the last line it says, which is where a compiler's errors name their cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1]}" if lines else type(error).__name__


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers and stack bytes of a thread."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", report)
    assert found is not None, f"cuobjdump says no register count: {report}"
    return int(found[1]), int(found[2])
