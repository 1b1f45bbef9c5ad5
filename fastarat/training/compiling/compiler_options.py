"""What inductor is told: options by which its code is right, is compiled sooner, and is kept for the next run."""

import platform
from typing import Any

from fastarat.training.compiling.decompositions import FILES

NO_LOOP_PATTERNS = "-fno-tree-loop-distribute-patterns"
"""keeps GCC from making copies out of loops, see `right_code`"""
FASTER_COMPILATION = {"cpp.vec_isa_ok": True, "cpp.enable_loop_tail_vec": False}
"""options by which inductor compiles sooner, see `compiler_options`"""
SAME_NUMBERS = {"fallback_random": True}
"""lets dropout draw what it draws eagerly"""


def compiler_options(device_type: str) -> dict[str, Any]:
    """The `options` of inductor by which its code is right, and compiled sooner.

    Sooner by a quarter (`digits-arat`, bf16: 118 CPU seconds, 87 with them): inductor builds no programs to try AVX,
    which a compiler that takes torch's headers knows; and what is left of a loop that is no multiple of a vector stays
    scalar, which made no difference to the two steps that were timed. A user's own `cpp.vec_isa_ok` stays.
    On a CPU random numbers are torch's own, as in the eager step that compiled code is held against.
    """
    if device_type != "cpu":
        return {}
    if platform.machine() != "x86_64":
        return SAME_NUMBERS
    from torch._inductor.config import cpp  # seconds to import

    own = {} if cpp.vec_isa_ok is None else {"cpp.vec_isa_ok": cpp.vec_isa_ok}
    return {**SAME_NUMBERS, **right_code(device_type), **FASTER_COMPILATION, **own}


def right_code(device_type: str) -> dict[str, Any]:
    """The `options` of inductor by which its code is right.

    At -O3 GCC 12.2 leaves parts of a transposed tile of bf16 unwritten where it makes copies out of loops: sums over
    that tile are NaN, and right without. Inductor takes no extra flags; it writes `march` last, so the flag goes behind
    it.
    """
    if device_type != "cpu" or platform.machine() != "x86_64":
        return {}
    from torch._inductor.config import cpp  # seconds to import
    from torch._inductor.cpp_builder import is_gcc

    return {"cpp.march": f"{cpp.march or 'native'} {NO_LOOP_PATTERNS}"} if is_gcc() else {}


def kept_options() -> dict[str, Any]:
    """The `options` of inductor by which traced graphs are kept for the next run, which starts sooner by a third.

    Torch keeps no graph with autocast unless its two functions are marked cacheable; they depend on their arguments
    alone. The mark is a hash of our decompositions' files, so changing those discards what was kept.
    """
    from torch._inductor.custom_graph_pass import get_hash_for_files  # seconds to import

    state = get_hash_for_files(FILES).hex()
    names = (f"torch.amp.autocast_mode.{name}" for name in ("_enter_autocast", "_exit_autocast"))
    return {"unsafe_marked_cacheable_functions": dict.fromkeys(names, state)}


def num_kept() -> int:
    """How often this process found compiled code of another one, or its own, instead of compiling it."""
    from torch._dynamo.utils import counters  # seconds to import

    return counters["aot_autograd"]["autograd_cache_hit"] + counters["inductor"]["fxgraph_cache_hit"]
