"""What inductor puts in the place of PyTorch's operators when it compiles a step for a CPU."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fastarat.training.compiling import batch_norm_by_image, weight_gradients

aten = torch.ops.aten
FILES = (__file__, *(str(module.__file__) for module in (batch_norm_by_image, weight_gradients)))
"""on which compiled code depends"""


@contextmanager
def for_cpu() -> Iterator[None]:
    """What inductor compiles has its batch-norms in training mode computed image by image, and the gradients of weights
    by one product where maps are small.

    Its table is changed and put back, since code is not kept for the next run if a table comes with the graph.
    """
    from torch._inductor.decomposition import select_decomp_table  # seconds to import

    own = {
        aten._native_batch_norm_legit_functional.default: batch_norm_by_image.batch_norm,
        aten.native_batch_norm_backward.default: batch_norm_by_image.batch_norm_backward,
        aten.convolution_backward.default: weight_gradients.convolution_backward,
    }
    table = select_decomp_table()
    before = {operator: table[operator] for operator in own}
    table.update(own)
    try:
        yield
    finally:
        table.update(before)
