"""Batch-norm image by image is batch-norm, and no sum runs over the pixels of all images at once."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from fastarat.training.compiling.batch_norm_by_image import aten, batch_norm, batch_norm_backward
from fastarat.training.compiling.decompositions import for_cpu

EPS, MOMENTUM = 1e-5, 0.1
forward: Any = batch_norm
backward: Any = batch_norm_backward


def _inputs(dtype: torch.dtype, affine: bool) -> tuple[Tensor, Tensor, Any, Any]:
    """x and the gradient that comes back [6, 5, 4, 3], weight and bias, both running statistics."""
    generator = torch.Generator().manual_seed(0)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x, grad = (torch.randn(6, 5, 4, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    x = (3 * x + 2).to(dtype).contiguous(memory_format=torch.channels_last)
    vectors = [torch.rand(5, generator=generator, dtype=torch.float64).to(wide) for _ in range(4)]
    return x, grad.to(dtype), [*vectors[:2]] if affine else [None, None], vectors[2:]


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_it_is_batch_norm(dtype, affine):
    x, grad, affine_parts, running = _inputs(dtype, affine)
    found = forward(x, *affine_parts, *running, True, MOMENTUM, EPS)
    wide: Any = [None if part is None else part.double() for part in (x, *affine_parts, *running)]
    right = aten._native_batch_norm_legit_functional(*wide, True, MOMENTUM, EPS)
    # Sums of 72 numbers in fp32, and one rounding to the dtype.
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2**-7}[dtype]
    for mine, its in zip(found, right, strict=True):
        torch.testing.assert_close(mine.double(), its, rtol=tolerance, atol=tolerance)
    wanted = [True, affine, affine]
    got = backward(grad, x, affine_parts[0], *running, *found[1:3], True, EPS, wanted)
    arguments: Any = (grad.double(), wide[0], wide[1], *wide[3:], *right[1:3], True, EPS, wanted)
    for mine, its in zip(got, aten.native_batch_norm_backward(*arguments), strict=True):
        if mine is None:
            continue
        # Both sums are of 72 terms of about 1.
        torch.testing.assert_close(mine.double(), its, rtol=tolerance, atol=10 * tolerance)
    assert (got[1] is None, got[2] is None) == (not affine, not affine)


def test_statistics_of_another_kind_stay_inductors():
    x, _, affine_parts, running = _inputs(torch.float64, True)
    for given, training in ((x, False), (x.flatten(2), True)):
        found = forward(given, *affine_parts, *running, training, MOMENTUM, EPS)[0]
        mean, variance = (part.clone() for part in running)
        right = torch.nn.functional.batch_norm(given, mean, variance, affine_parts[0], affine_parts[1], training)
        torch.testing.assert_close(found, right)


def test_every_sum_over_pixels_keeps_the_images_apart():
    """Else inductor gives a layer of 16 channels to one thread."""
    from torch._inductor.decomposition import select_decomp_table

    x, grad, affine_parts, running = _inputs(torch.float32, True)

    def both(x: Tensor, grad: Tensor) -> list[Tensor | None]:
        out, mean, inverse, *_ = aten._native_batch_norm_legit_functional(
            x, *affine_parts, *running, True, MOMENTUM, EPS
        )
        arguments: Any = (affine_parts[0], *running, mean, inverse, True, EPS, [True, True, True])
        return [out, *aten.native_batch_norm_backward(grad, x, *arguments)]

    usual = dict(select_decomp_table())
    with for_cpu():
        graph = make_fx(both, decomposition_table=select_decomp_table())(x, grad)
    assert select_decomp_table() == usual
    reductions = {aten.var_mean.correction, aten.sum.dim_IntList, aten.mean.dim}
    nodes = [node for node in graph.graph.nodes if node.target in reductions]
    assert len(nodes) == 8, graph.code
    for node in nodes:
        shape, out = node.args[0].meta["val"].shape, node.meta["val"]
        out = out[0] if isinstance(out, tuple) else out
        assert shape.numel() // out.numel() in (6, 12), node.format_node()  # of the images, or of an image's pixels
