"""Memory that tensors on a CPU come from: what is freed stays with the process.

glibc gives its heap's free end back to the system, and each training step frees nearly all that it has taken: the next
one then waits for the same pages to be zeroed anew, by one thread while the others wait (docs/speed.md has numbers).
The two parameters are those of mallopt(3). Blocks above 32 MB, the most that malloc takes from its heap by its own rule
too, come from the system as ever: kept in the heap, small objects between them would let it grow.
"""

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""of glibc's malloc.h"""
_NEVER, _MOST = -1, 32 << 20
_OWN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES")


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees to its end; nothing where the C library is not glibc, or its user
    has set one of malloc's variables."""
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version") and not any(name in os.environ for name in _OWN):
        library.mallopt(_TRIM_THRESHOLD, _NEVER)
        library.mallopt(_MMAP_THRESHOLD, _MOST)
