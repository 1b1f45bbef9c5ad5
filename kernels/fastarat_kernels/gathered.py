"""Values of all processes, side by side: what stands between a reduction and the pass that uses it."""

from typing import Any, cast

import torch
from torch import Tensor


def gathered(values: Tensor, process_group: str) -> Tensor:
    """`values` [P, …] of all processes in order, [processes * P, …]; as they are where `process_group` is "".

    `process_group`: the name of a torch.distributed group. A compiler traces it into its graph; it has no gradient.
    """
    if not process_group:
        return values
    from torch.distributed import distributed_c10d as c10d

    size = c10d._get_group_size_by_name(cast(Any, process_group))
    ops = torch.ops._c10d_functional
    return ops.wait_tensor(ops.all_gather_into_tensor(values, size, process_group))
