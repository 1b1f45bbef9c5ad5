"""Collectives of a compiled step: started as soon as what they send is there, waited for as late as can be.

Autograd gives all gradients at once, so that the traced graph has the all-reduces after the backward pass. A pass over
the graph moves each to where its last gradient is computed; inductor's scheduler, which orders by memory in use, is
told to keep that order. Both go by the graph alone, which is every process's: none starts another collective than the
others. On a GPU NCCL's kernels run on a stream of their own beside the backward pass's, captured with it.
"""

from typing import Any

import torch
from torch.fx import Graph, Node


def overlap_options() -> dict[str, Any]:
    """The `options` of inductor by which its scheduler keeps the order."""
    return {
        "reorder_for_compute_comm_overlap": True,
        "reorder_for_compute_comm_overlap_passes": ["raise_comms", "sink_waits"],
    }


def start_sooner(graph: Graph) -> None:
    """Move each all-reduce, with the nodes that only it uses, to just after its last input; in place."""
    all_reduces = graph.find_nodes(op="call_function", target=torch.ops._c10d_functional.all_reduce.default)
    for all_reduce in reversed(list(all_reduces)):  # what is moved last comes first
        for node in _computed_for(all_reduce):
            max(node.all_input_nodes).append(node)


def _computed_for(last: Node) -> list[Node]:
    """`last`, and before it in their order all nodes whose values nothing but `last` needs, and that need some."""
    found = {last}
    node = last.prev
    while node.op != "placeholder" and node.op != "root":
        if node.users and found.issuperset(node.users) and node.all_input_nodes:
            found.add(node)
        node = node.prev
    return sorted(found)
