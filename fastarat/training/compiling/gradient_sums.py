"""Gradients that meet where a net branches, added by the fused batch-norm's backward pass on its way.

A residual block's input goes two ways, so two gradients of it come back, and autograd adds them: a kernel that reads
both and writes their sum, which the next one reads. Before a batch-norm with a residual (ResNet) that next one is the
kernel that masks the gradient and writes it anyway; after one at the head of a block (a wide ResNet) one of the two is
what the last kernel writes. Either can take the other gradient along: of three passes over a tensor one is left. A
step of AR-AT in bf16 goes from 29.9 to 28.4 GB and 76 launches less on a ResNet-18, from 148.5 to 141.5 GB and 132
less on a WRN-34-10 (counted, not measured).
"""

import operator
from typing import Any

import fastarat_kernels.dual_batch_norm  # noqa: F401  registers the operators
import torch
from torch.fx import Graph, Node

_READS = torch.ops.fastarat.batch_norm_gradient_partials.default
_WRITES = torch.ops.fastarat.batch_norm_input_gradient.default
_BITS = 5
_OTHER: dict[Any, int] = {_READS: 9, _WRITES: 10}
"""places among their arguments: of the ReLU's bits, and of another gradient"""


def add_in_batch_norms(graph: Graph) -> None:
    """Let batch-norms' kernels add what autograd adds, where they can, in place."""
    for add in list(graph.find_nodes(op="call_function", target=torch.ops.aten.add.Tensor)):
        if _is_of_two_alike(add) and (_left_to_reader(add) or _left_to_writer(add)):
            graph.erase_node(add)


def _is_of_two_alike(add: Node) -> bool:
    """Whether it adds two tensors of its own shape, dtype and layout, and nothing else."""
    values = [node.meta["val"] for node in (add, *add.all_input_nodes)]
    kinds = {(value.shape, value.dtype, value.stride()) for value in values}
    return len(add.all_input_nodes) == 2 and len(kinds) == 1 and not add.kwargs


def _left_to_reader(add: Node) -> bool:
    """Have the sum's only reader read both terms, if it is a batch-norm that writes its gradient anyway."""
    reader, (first, second) = next(iter(add.users), add), add.all_input_nodes
    if len(add.users) != 1 or reader.target != _READS or reader.args[0] is not add or _has_other(reader):
        return False
    bits: Any = reader.args[_BITS]
    if not bits.meta["val"].numel():
        return False
    reader.replace_input_with(add, first)
    _give_other(reader, second)
    return True


def _left_to_writer(add: Node) -> bool:
    """Have the batch-norm that writes one term, for the sum alone, add the other one, if that is there before."""
    for written, other in (add.all_input_nodes, add.all_input_nodes[::-1]):
        if written.target is operator.getitem and written.args[1] == 0 and list(written.users) == [add]:
            (writer,) = written.all_input_nodes
            if writer.target == _WRITES and not _has_other(writer) and other < writer:
                add.replace_all_uses_with(written)
                _give_other(writer, other)
                return True
    return False


def _has_other(node: Node) -> bool:
    return len(node.args) > _OTHER[node.target]


def _give_other(node: Node, other: Node) -> None:
    """Make `other` the last argument, also of those values by which inductor lays arguments out as they were traced."""
    node.args = (*node.args, other)
    if "eager_input_vals" in node.meta:
        values, named = node.meta["eager_input_vals"]
        node.meta["eager_input_vals"] = ((*values, other.meta["val"]), named)
