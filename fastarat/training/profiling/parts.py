"""The parts of a training step, and which part an operation of PyTorch belongs to."""

import re
from collections.abc import Iterable
from math import prod
from typing import Literal, NamedTuple

from fastarat.training.state import Training

Part = Literal["convolutions", "batch-norm", "attack update", "augmentation", "optimizer", "loss and the rest"]
PARTS: tuple[Part, ...] = (
    "convolutions",  # and linear layers
    "batch-norm",  # and residual, ReLU, pooling: what the fused kernels do
    "attack update",  # start noise, step, projection
    "augmentation",
    "optimizer",
    "loss and the rest",
)
REST: Part = "loss and the rest"
Shape = tuple[int, ...]

OPERATIONS: tuple[tuple[Part, re.Pattern], ...] = (
    ("convolutions", re.compile(r"convolution|conv2d|^(add|b|badd)?b?mm$|^linear$|^matmul$")),
    ("batch-norm", re.compile(r"batch_norm|running_statistics|pooled_features|relu|threshold")),
    ("attack update", re.compile(r"pgd_step|start_point|^sign$")),
    ("augmentation", re.compile(r"augment")),
    ("optimizer", re.compile(r"^_foreach|sgd")),
)
"""Names of operations, without their name space; the first that fits."""


class Shapes(NamedTuple):
    """The shapes by which an operation's part is known where its name says nothing."""

    image: Shape
    """C, H, W"""
    parameters: frozenset[Shape]

    @classmethod
    def of(cls, training: Training) -> "Shapes":
        """Those of a training's images and parameters."""
        height, width, channels = training.dataset.image_shape
        return cls((channels, height, width), frozenset(tuple(p.shape) for p in training.parts.parameters))

    def part_of(self, name: str, shapes: Iterable[Shape]) -> Part | None:
        """The part of an operation of the step by its name, without its name space, and the shapes of its tensors.

        Images and their noise are the attack's; other [N, C, H, W] stand between batch-norms. None: unknown.
        """
        for part, pattern in OPERATIONS:
            if pattern.search(name):
                return part
        largest = max(shapes, key=prod, default=())
        if largest in self.parameters:
            return REST
        # Philox makes four words at a time.
        numbers = prod(self.image)
        quarter = -(-numbers // 4)
        if largest[1:] in (self.image, (1, 1, 1), (numbers,), (quarter,), (quarter, 4)):
            return "attack update"
        return "batch-norm" if len(largest) == 4 else None


_COMPILED = r"(triton_\w*?|cpp)_fused"
KERNELS: tuple[tuple[Part, re.Pattern], ...] = (
    # Our own, of fastarat_kernels.
    ("batch-norm", re.compile(r"^_(partials|apply|gradient_partials|input_gradient)_kernel$|^_(forward|backward)$")),
    ("attack update", re.compile(r"^_(linf|l2)_(step|start)_kernel$")),
    ("augmentation", re.compile(r"^_augment_kernel$")),
    ("optimizer", re.compile(r"^_sgd$")),
    # Inductor's name a kernel by the operations in it: the first that tells what the kernel is for.
    ("convolutions", re.compile(r"^triton_tem_")),
    ("batch-norm", re.compile(rf"{_COMPILED}.*(batch_norm|relu|threshold)")),
    ("optimizer", re.compile(rf"^triton_for_|{_COMPILED}.*_foreach_")),
    ("attack update", re.compile(rf"{_COMPILED}.*(_sign|bitwise_xor)(_|$)")),
    ("loss and the rest", re.compile(rf"{_COMPILED}.*(softmax|nll_loss|vector_norm|argmax)")),
    ("convolutions", re.compile(rf"{_COMPILED}.*_convolution")),
    # Gradients that meet where a residual branches off, and pooling.
    ("batch-norm", re.compile(rf"{_COMPILED}_(add|(_to_copy_)?mean|div(_expand)?)_\d+$")),
    # PyTorch's: running statistics move by lists of scalars, weights do not.
    ("batch-norm", re.compile(r"multi_tensor_apply.*ScalarListFunctor")),
    ("optimizer", re.compile(r"multi_tensor_apply|(?i:fused_?sgd)")),
    ("batch-norm", re.compile(r"batch_?norm|cudnn::bn_|\bbn_(fw|bw)_|threshold_kernel", re.IGNORECASE)),
    ("attack update", re.compile(r"(sign|maximum|minimum)_kernel_cuda")),
    ("loss and the rest", re.compile(r"nccl|^mem(cpy|set)|softmax|nll_loss", re.IGNORECASE)),
    # cuDNN's, cuBLAS's and CUTLASS's, with what prepares and finishes them.
    (
        "convolutions",
        re.compile(
            r"fprop|dgrad|wgrad|winograd|convol|implicit|xmma|cutlass|tensorop|gemm|gemv|nvjet|cudnn|cublas|cask|"
            r"splitk|nhwcTo|nchwTo|im2col",
            re.IGNORECASE,
        ),
    ),
)
"""Names of kernels on a GPU, and of inductor's on a CPU; the first that fits."""


def part_of_kernel(name: str) -> Part | None:
    """The part of a kernel by its name; None: its name does not say."""
    return next((part for part, pattern in KERNELS if pattern.search(name)), None)
