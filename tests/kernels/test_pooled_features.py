"""Pooled features: the Triton kernel and the operator against the PyTorch twin."""

import pytest
import torch
import torch.nn.functional as F
from fastarat_kernels.launch import UnsupportedInput
from fastarat_kernels.pooled_features import pooled_features, twin
from fastarat_kernels.pooled_features import triton as kernels
from torch import Tensor

from tests.helpers.kernel_errors import error
from tests.helpers.poison import poisoned

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Ragged channels and positions, one image, one position, more positions than a tile, and [N, C].
SHAPES = [
    (2, 3, 5, 7),
    (1, 640, 2, 2),
    (3, 65, 1, 1),
    (2, 16, 32, 32),
    (1, 130, 3, 23),
    (2, 8, 1, 65),
    (1, 2048, 7, 7),
    (4, 70),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# A format decides casts alone, wherever a tile lies.
MAPS = [*((shape, DTYPES[0]) for shape in SHAPES), *((SHAPES[i], dtype) for dtype in DTYPES[1:] for i in (0, 4, 7))]
IDS = [f"{'x'.join(map(str, shape))}-{str(dtype).removeprefix('torch.')}" for shape, dtype in MAPS]
# Sums of up to 1,024 float32 numbers in another order: 6e-8 each, growing like the root of their number. The
# input is the same on both sides whatever its dtype, and the output float32: so the bound is the same too.
FORWARD_BOUND = 2e-6
# The quotient is rounded once, to z's dtype. bf16: one unit in the last place, since the interpreter truncates.
BACKWARD_BOUND = {torch.float32: 1e-6, torch.bfloat16: 2**-7, torch.float16: 2**-11}


def feature_map(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, device: str = DEVICE) -> Tensor:
    """Random numbers about 0, some of them exactly 0, channels-last."""
    z = torch.randn(shape, dtype=torch.float64).to(dtype)
    z.flatten()[::7] = 0
    z = z.contiguous(memory_format=torch.channels_last) if z.dim() == 4 else z
    return z.to(device)


@pytest.mark.parametrize(("shape", "dtype"), MAPS, ids=IDS)
def test_the_kernel_gives_the_features_of_the_twin(shape, dtype):
    z = feature_map(shape, dtype)
    with poisoned():
        ours = kernels.pooled_features(z)
    assert ours.dtype == torch.float32
    assert error(ours, twin.pooled_features(z)) < FORWARD_BOUND


@pytest.mark.parametrize(("shape", "dtype"), MAPS, ids=IDS)
def test_the_kernel_gives_the_gradient_of_the_twin(shape, dtype):
    z, gradient = feature_map(shape, dtype), torch.randn(shape[:2], device=DEVICE)
    with poisoned():
        ours = kernels.pooled_features_backward(gradient, z)
    expected = twin.pooled_features_backward(gradient, z)
    assert ours.dtype == dtype and ours.stride() == z.stride()
    assert error(ours, expected) < BACKWARD_BOUND[dtype]
    assert torch.equal(ours == 0, expected == 0)


def test_a_net_that_diverged_shows_in_its_features():
    z = feature_map((2, 16, 2, 2))
    z[1, 3, 1, 1] = float("nan")
    for features in (kernels.pooled_features(z), twin.pooled_features(z)):
        assert features.isnan().nonzero().tolist() == [[1, 3]]


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize("shape", [(2, 5, 3, 3), (2, 5)])
def test_the_operator_and_its_gradient_are_those_of_relu_and_mean(shape, dtype):
    z = feature_map(shape, dtype, "cpu").requires_grad_()
    weight = torch.randn(shape[:2]).to(dtype)
    wide = F.relu(z) if dtype == torch.float64 else F.relu(z).float()
    ours, expected = pooled_features(z), wide.mean((2, 3)) if z.dim() == 4 else wide
    assert torch.equal(ours, expected)
    (ours_dz,) = torch.autograd.grad((ours * weight).sum(), z)
    (expected_dz,) = torch.autograd.grad((expected * weight).sum(), z)
    assert torch.equal(ours_dz, expected_dz)


@pytest.mark.parametrize("shape", [(2, 3, 2, 3), (3, 4)])
def test_the_gradient_is_the_slope(shape):
    # Away from 0, where ReLU has none.
    z = torch.randn(shape, dtype=torch.float64)
    z = (z + 0.1 * z.sign()).requires_grad_()
    assert torch.autograd.gradcheck(pooled_features, (z,))


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((2, 3, 2, 3), torch.float32), ((3, 4), torch.float32), ((3, 4), torch.bfloat16), ((2, 4, 1, 1), torch.bfloat16)],
)
def test_the_operator_keeps_the_contract_of_pytorch(shape, dtype):
    z = feature_map(shape, dtype, "cpu").requires_grad_()
    torch.library.opcheck(torch.ops.fastarat.pooled_features, (z,))
    torch.library.opcheck(
        torch.ops.fastarat.pooled_features_backward, (torch.randn(shape[:2]), feature_map(shape, dtype, "cpu"))
    )


@pytest.mark.skipif(not hasattr(torch._dynamo.config, "trace_autograd_ops"), reason="this torch cannot trace it")
def test_a_full_graph_may_differentiate_the_features_inside():
    weight = torch.randn(4)

    def slope(z: Tensor, zero: Tensor) -> Tensor:
        leaf = z.detach() + zero
        (dz,) = torch.autograd.grad((pooled_features(leaf * 2) * weight).sum(), leaf)
        return dz

    z, zero = feature_map((2, 4, 3, 3), device="cpu"), torch.zeros((), requires_grad=True)
    compiled = torch.compile(slope, fullgraph=True, backend="aot_eager")
    # pytest's own patch would leave torch without the setting.
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        ours = compiled(z, zero)
    expected = slope(z, zero)
    assert torch.equal(ours, expected) and ours.stride() == expected.stride()


@pytest.mark.parametrize(
    ("z", "fix"),
    [
        (torch.ones(2, 3, 4, 5), "channels_last"),
        (torch.ones(2, 3, 4), r"\[N, C\] and \[N, C, H, W\]"),
        (torch.ones(2, 3, dtype=torch.float64), "float32, bfloat16 and float16"),
        (torch.ones(0, 3), "empty"),
    ],
)
def test_the_kernel_refuses_what_it_cannot_read(z, fix):
    for call in (kernels.pooled_features, lambda z: kernels.pooled_features_backward(torch.ones(z.shape[:2]), z)):
        with pytest.raises(UnsupportedInput, match=fix):
            call(z)


@pytest.mark.parametrize("gradient", [torch.ones(3, 2), torch.ones(2, 3, dtype=torch.bfloat16)])
def test_the_kernel_refuses_a_gradient_of_another_kind(gradient):
    with pytest.raises(UnsupportedInput, match=r"give float32 \(2, 3\)"):
        kernels.pooled_features_backward(gradient, torch.ones(2, 3))


def test_a_gradient_of_any_layout_is_taken():
    gradient, z = torch.randn(3, 2).t(), feature_map((2, 3))
    ours = kernels.pooled_features_backward(gradient.to(DEVICE), z)
    assert torch.equal(ours, twin.pooled_features_backward(gradient.to(DEVICE), z))


@pytest.mark.parametrize("z", [torch.ones(2, 3, 4), torch.ones(2, 3, dtype=torch.int64)])
def test_the_operator_refuses_what_is_no_feature_map(z):
    with pytest.raises(UnsupportedInput, match=r"takes float \[N, C\]"):
        pooled_features(z)
