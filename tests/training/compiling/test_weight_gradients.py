"""The gradient of a convolution's weights as a product is that gradient, and comes where it is faster."""

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from fastarat.training.compiling import weight_gradients
from fastarat.training.compiling.decompositions import for_cpu
from fastarat.training.compiling.weight_gradients import aten, weight_gradient

CASES = {
    "3 x 3": ((6, 5, 7, 8), (4, 5, 3, 3), (1, 1), (1, 1)),
    "with a stride": ((6, 5, 8, 7), (4, 5, 3, 3), (2, 2), (1, 1)),
    "1 x 1 with a stride": ((6, 5, 8, 8), (4, 5, 1, 1), (2, 2), (0, 0)),
    "nothing is square": ((6, 5, 9, 6), (4, 5, 3, 2), (2, 1), (2, 0)),
}


def _inputs(case: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, tuple[int, int], tuple[int, int]]:
    """The gradient that comes back, x, weight, stride and padding."""
    x_shape, weight_shape, stride, padding = CASES[case]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(x_shape, generator=generator, dtype=torch.float64)
    weight = torch.randn(weight_shape, generator=generator, dtype=torch.float64)
    out = torch.nn.functional.conv2d(x, weight, None, stride, padding)
    grad = torch.randn(out.shape, generator=generator, dtype=torch.float64)
    last = {"dtype": dtype, "memory_format": torch.channels_last}
    return grad.to(**last), x.to(**last), weight.to(**last), stride, padding


def _right(grad: Tensor, x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
    wide = grad.double(), x.double(), weight.double()
    rest = None, stride, padding, (1, 1), False, (0, 0), 1, (False, True, False)
    return aten.convolution_backward(*wide, *rest)[1]


@pytest.mark.parametrize("most", [weight_gradients._MOST_ELEMENTS, 1], ids=["at once", "image by image"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_it_is_the_gradient(case, dtype, most, monkeypatch):
    monkeypatch.setattr(weight_gradients, "_MOST_ELEMENTS", most)
    given = _inputs(case, dtype)
    found = weight_gradient(*given)
    assert found.dtype == dtype and found.is_contiguous(memory_format=torch.channels_last)
    right = _right(*given)
    # Sums of up to 400 products of about 1, each part of which is rounded once, and the whole once more.
    tolerance = {torch.float64: 1e-12, torch.bfloat16: 2**-7}[dtype]
    torch.testing.assert_close(found.double(), right, rtol=tolerance, atol=tolerance * float(right.abs().max()))


@pytest.mark.parametrize(
    ("side", "dtype", "wanted", "is_product"),
    [
        (8, torch.bfloat16, (True, True, True), True),
        (8, torch.bfloat16, (False, True, False), True),
        (8, torch.bfloat16, (True, False, False), False),  # an attack's
        (9, torch.bfloat16, (True, True, False), False),
        (8, torch.float32, (True, True, False), False),
        (4, torch.bfloat16, (True, True, False), True),
    ],
)
def test_it_comes_where_it_is_faster(side, dtype, wanted, is_product):
    from torch._inductor.decomposition import select_decomp_table

    x, weight = torch.randn(2, 3, side, side, dtype=dtype), torch.randn(4, 3, 3, 3, dtype=dtype)
    grad = torch.randn(2, 4, side, side, dtype=dtype)
    rest = (1, 1), (1, 1), (1, 1), False, (0, 0), 1, wanted

    def backward(grad: Tensor, x: Tensor, weight: Tensor) -> list[Tensor]:
        return [part for part in aten.convolution_backward(grad, x, weight, [4], *rest) if part is not None]

    with for_cpu():
        graph = make_fx(backward, decomposition_table=select_decomp_table())(grad, x, weight)
    left = graph.graph.find_nodes(op="call_function", target=aten.convolution_backward.default)
    assert bool(graph.graph.find_nodes(op="call_function", target=aten.mm.default)) == is_product
    assert [node.args[-1][1] for node in left] == [False] * any(wanted[::2]) if is_product else len(left) == 1
    for found, right in zip(graph(grad, x, weight), backward(grad, x, weight), strict=True):
        torch.testing.assert_close(found, right, rtol=2**-6, atol=2**-4)  # sums of up to 128 products, in bf16


def test_images_in_many_pieces_and_none_at_all_are_left_to_inductor(monkeypatch):
    weight = torch.randn(4, 3, 3, 3, dtype=torch.bfloat16)
    monkeypatch.setattr(weight_gradients, "_MOST_ELEMENTS", 2 * 16 * weight[0].numel())  # two images of 4 x 4

    def is_left(images: int) -> bool:
        grad, x = (torch.randn(images, channels, 4, 4, dtype=torch.bfloat16) for channels in (4, 3))
        rest = None, (1, 1), (1, 1), (1, 1), False, (0, 0), 1, (False, True, False)
        return weight_gradients.convolution_backward(grad, x, weight, *rest) is NotImplemented

    assert [is_left(images) for images in (0, 1, 16, 17)] == [True, False, False, True]
