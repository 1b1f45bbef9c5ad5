"""All-gathers of a compiled step that need not wait for one another travel as one.

The statistics of a block's first batch-norm and of its shortcut's are there together, both ways; so are those of
AR-AT's predictors. Which they are the graph says, so that every net shares what it can without being written for it.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch._inductor.fx_passes.bucketing import process_collective_bucket
from torch._inductor.pattern_matcher import stable_topological_sort
from torch.fx import Graph, Node

ALL_GATHER = torch.ops._c10d_functional.all_gather_into_tensor.default


def send_together(graph: Graph) -> None:
    """Make one all-gather of those that follow each other and do not depend on each other, in place."""
    for gathers in list(_independent(graph)):
        size_and_group = gathers[0].args[1:]

        def given(inputs: list[Node], how: tuple[Any, ...] = size_and_group) -> tuple[Any, ...]:
            return [node.meta["val"] for node in inputs], *how

        process_collective_bucket(graph, gathers, _gathered_as_one, given)
    stable_topological_sort(graph)


def _independent(graph: Graph) -> Iterator[list[Node]]:
    """All-gathers of one process group and dtype, two or more, none of which needs what another one gives."""
    together: list[Node] = []
    dependent: set[Node] = set()
    for node in graph.nodes:
        needs_them = not dependent.isdisjoint(node.all_input_nodes)
        if node.target is not ALL_GATHER:
            if needs_them:
                dependent.add(node)
            continue
        if together and (needs_them or _kind(node) != _kind(together[0])):
            if len(together) > 1:
                yield together
            together, dependent = [], set()
        together.append(node)
        dependent.add(node)
    if len(together) > 1:
        yield together


def _kind(gather: Node) -> tuple[Any, ...]:
    return *gather.args[1:], gather.meta["val"].dtype


def _gathered_as_one(values: list[Tensor], size: int, group: str) -> list[Tensor]:
    """What the all-gathers of each of `values` [P, …] give, [size * P, …]."""
    ops = torch.ops._c10d_functional
    flat = torch.cat([each.reshape(-1) for each in values])
    everyones = ops.wait_tensor(ops.all_gather_into_tensor(flat, size, group)).view(size, -1)
    parts = everyones.split_with_sizes([each.numel() for each in values], dim=1)
    return [part.reshape(-1, *each.shape[1:]) for part, each in zip(parts, values, strict=True)]
