"""All running statistics of a net move at once as they would one by one."""

import torch
from fastarat_kernels.running_statistics import move_running_statistics
from torch.library import opcheck

SHAPES = [(1, 3), (2, 64), (1, 5)]


def tensors(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]


def test_every_entry_moves_by_its_own_momentum_towards_its_own_scaled_batch():
    running, batch = tensors(0), tensors(1)
    scales, momenta = [1.0, 1.25, 2.0], [0.1, 0.5, 1.0]
    expected = [r + m * (s * b - r) for r, b, s, m in zip(running, batch, scales, momenta, strict=True)]
    move_running_statistics(running, batch, scales, momenta)
    for mine, theirs in zip(running, expected, strict=True):
        # Three float64 operations.
        torch.testing.assert_close(mine, theirs, rtol=1e-15, atol=1e-15)


def test_views_move_what_they_are_views_of():
    both = torch.zeros(2, 4)
    move_running_statistics([both[1:2]], [torch.ones(1, 4)], [1.0], [0.25])
    assert both.tolist() == [[0.0] * 4, [0.25] * 4]


def test_the_op_keeps_the_rules_of_custom_ops():
    opcheck(move_running_statistics, (tensors(0), tensors(1), [1.0, 1.5, 2.0], [0.1, 0.1, 0.2]))
