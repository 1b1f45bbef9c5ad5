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
"""place of the ReLU's bits among the arguments of the first"""


def add_in_batch_norms(graph: Graph) -> None:
    """Let batch-norms' kernels add what autograd adds, where they can, in place."""
    for add in list(graph.find_nodes(op="call_function", target=torch.ops.aten.add.Tensor)):
        if _is_of_two_alike(add) and (_left_to_reader(add) or _left_to_writer(add)):
            graph.erase_node(add)


def _is_of_two_alike(add: Node) -> bool:
    """Whether it adds two tensors of its own shape, dtype and layout, and nothing else."""
    if add.kwargs or not all(isinstance(term, Node) for term in add.args):
        return False
    values = [node.meta["val"] for node in (add, *add.all_input_nodes)]
    kinds = {(value.shape, value.dtype, value.stride()) for value in values}
    return len(add.all_input_nodes) == 2 and len(kinds) == 1


def _left_to_reader(add: Node) -> bool:
    """Have the sum's only reader read both terms, if it is a batch-norm that writes its gradient anyway."""
    (reader, *others) = add.users
    if others or reader.target != _READS or reader.args[0] is not add or not reader.args[_BITS].meta["val"].numel():
        return False
    first, second = add.args
    _give(reader, first, *reader.args[1:], second)
    return True


def _left_to_writer(add: Node) -> bool:
    """Have the batch-norm that writes one term, for the sum alone, add the other one, if that is there before."""
    for written, other in (add.args, add.args[::-1]):
        if written.target is operator.getitem and written.args[1] == 0 and list(written.users) == [add]:
            writer = written.args[0]
            if writer.target == _WRITES and other < writer:
                _give(writer, *writer.args, other)
                add.replace_all_uses_with(written)
                return True
    return False


def _give(node: Node, *args: Any) -> None:
    """Give `node` these arguments, and inductor, which lays them out as they were traced, their values beside them."""
    values = tuple(arg.meta["val"] if isinstance(arg, Node) else arg for arg in args)
    node.args = args
    node.meta["eager_input_vals"] = (values, {})
