"""Batch-norm over processes: what one process computes of all rows, by one collective a layer and pass."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from fastarat_kernels.implementations import PYTORCH, TRITON
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastarat.models.batch_norm import BatchNorm1d, synchronised_batch_norm
from fastarat.models.split_batch_norm import SplitBatchNorm2d
from tests.helpers.groups import alone

NUM_PROCESSES = 4
# float64 keeps 1e-16 an operation; sums over a few hundred values leave some 1e-14.
CLOSE = {"rtol": 1e-11, "atol": 1e-12}


def given() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows [clean; adversarial] of all processes, weights, biases, and what each output counts in a loss."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((16, 3, 4, 5), (2, 3), (2, 3), (16, 3, 4, 5))
    x, weight, bias, counts = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes)
    x[8:] = 3 * x[8:] + 100  # far from 0 beside its spread, and unlike the other half
    return x, weight, bias, counts


def of_one_process(rank: int, folder: Path) -> None:
    """Write what one of several processes gets of its rows of each half."""
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=NUM_PROCESSES)
    x, weight, bias, counts = given()
    mine, counted = (torch.cat([half.chunk(NUM_PROCESSES)[rank] for half in each.chunk(2)]) for each in (x, counts))
    leaves = [each.requires_grad_() for each in (mine, weight, bias)]
    group = dist.group.WORLD
    assert group is not None
    out, statistics = synchronised_batch_norm(*leaves, group, num_parts=2)
    gradients = torch.autograd.grad((out * counted).sum(), leaves)
    torch.save((out.detach(), statistics, *gradients), folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_four_processes_compute_what_one_does_of_all_rows(tmp_path):
    torch.multiprocessing.start_processes(of_one_process, (tmp_path,), NUM_PROCESSES, start_method="fork")
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(NUM_PROCESSES)]
    x, weight, bias, counts = given()
    leaves = [each.requires_grad_() for each in (x, weight, bias)]
    halves = zip(x.chunk(2), weight, bias, strict=True)
    out = torch.cat([F.batch_norm(half, None, None, w, b, training=True) for half, w, b in halves])
    gradients = torch.autograd.grad((out * counts).sum(), leaves)
    for mine, whole in ((0, out), (2, gradients[0])):
        parts = zip(*(each[mine].chunk(2) for each in found), strict=True)
        torch.testing.assert_close(torch.cat([row for half in parts for row in half]), whole, **CLOSE)
    for mine, whole in ((3, gradients[1]), (4, gradients[2])):  # of each one's rows
        torch.testing.assert_close(torch.stack([each[mine] for each in found]).sum(0), whole, **CLOSE)
    axes = (1, 3, 4)
    rows = x.detach().unflatten(0, (2, 8))
    for each in found:
        torch.testing.assert_close(each[1], torch.stack([rows.mean(axes), rows.var(axes, correction=0)]), **CLOSE)


class Collectives(TorchDispatchMode):
    """Counts them."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func)
        self.count += "c10d" in name and "wait_tensor" not in name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kernels", [PYTORCH, TRITON], ids=lambda kernels: kernels.name)
@pytest.mark.parametrize("kind", ["split", "shared", "mixed"])
@pytest.mark.parametrize("branch", ["adv", "both"])
def test_a_layer_has_one_collective_in_each_pass_for_both_halves(kind, branch, kernels):
    layer = SplitBatchNorm2d(3, kind)
    x = torch.randn(4, 3, 2, 2).contiguous(memory_format=torch.channels_last).requires_grad_()
    with alone() as world:
        layer.context.group, layer.context.branch, layer.context.kernels = world.group, branch, kernels
        assert passes(layer, x) == [1, 1]


def test_a_predictors_batch_norm_has_one_collective_in_each_pass_and_moves_as_alone():
    layer, x = BatchNorm1d(3), torch.randn(8, 3, requires_grad=True)
    plain = nn.BatchNorm1d(3)
    plain(x)
    with alone() as world:
        layer.group = world.group
        assert passes(layer, x) == [1, 1]
    torch.testing.assert_close(layer.running_mean, plain.running_mean)
    torch.testing.assert_close(layer.running_var, plain.running_var)


def passes(layer: nn.Module, x: Tensor) -> list[int]:
    """How many collectives a forward pass has, and a backward pass."""
    with Collectives() as forward:
        out = layer(x)
    with Collectives() as backward:
        torch.autograd.grad(out.square().sum(), x)
    return [forward.count, backward.count]
