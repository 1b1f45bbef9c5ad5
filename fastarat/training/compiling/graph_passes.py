"""What is changed in a step's traced graph before inductor makes code of it."""

import inspect
from collections.abc import Callable
from typing import Any

from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch.fx import Graph

from fastarat.training.compiling.gradient_sums import add_in_batch_norms
from fastarat.training.compiling.overlap import overlap_options, start_sooner
from fastarat.training.compiling.sent_together import send_together

OF_ONE, OF_SEVERAL = (add_in_batch_norms,), (add_in_batch_norms, send_together, start_sooner)
"""passes for the step of one process, and of several"""


def graph_options(*, overlaps: bool) -> dict[str, Any]:
    """The `options` of inductor that run the passes. `overlaps`: of several processes."""
    passes = {"post_grad_custom_pre_pass": GraphPasses(*(OF_SEVERAL if overlaps else OF_ONE))}
    return passes | (overlap_options() if overlaps else {})


class GraphPasses(CustomGraphPass):
    """Passes one after the other."""

    def __init__(self, *passes: Callable[[Graph], None]):
        self.passes = passes

    def __call__(self, graph: Graph) -> None:
        """Change `graph`, in place."""
        for change in self.passes:
            change(graph)

    def uuid(self) -> Any:
        """What compiled code depends on."""
        return get_hash_for_files(tuple(inspect.getfile(change) for change in self.passes))
