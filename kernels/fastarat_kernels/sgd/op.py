"""`sgd` as a PyTorch operator that changes its buffers in place: the twin on the CPU, Triton on CUDA."""

from torch import Tensor

from fastarat_kernels.sgd import twin
from fastarat_kernels.torch_op import torch_op


def sgd(
    parameters: Tensor,
    gradients: Tensor,
    momenta: Tensor,
    learning_rate: Tensor,
    momentum: float,
    weight_decay: float,
    keep: Tensor | None = None,
    scale: Tensor | None = None,
    shadow: Tensor | None = None,
    average: Tensor | None = None,
    share: Tensor | None = None,
) -> None:
    """m <- momentum m + scale g + weight_decay p;  p <- p - learning_rate m, in place (torch.optim.SGD's rule).

    Then shadow <- p, and average <- average + share (p - average), each if given. `keep` 0 leaves everything
    as it was, whatever the gradients hold (a step skipped because fp16 gradients overflowed).

    `parameters`, `momenta`, `average`: [n] float32 (float64 too on the CPU). `gradients`: [n], the same,
    bfloat16 or float16. `shadow`: [n] bfloat16 or float16. `learning_rate`, `keep`, `scale` (1 over the loss
    scale) and `share` (SWA: 1 / (snapshots + 1); EMA: 1 - decay; 0: not this step): float32 tensors of one
    element on the device, so that a captured graph can be replayed with other values.
    Bytes per parameter: 20, with shadow weights 22, with an average 30 in all, in one launch; for
    `torch._fused_sgd_` and a cast and an average pass 20, 26 and 38. Buffers must not overlap.
    Raises `UnsupportedInput` for buffers of unequal length, and on CUDA for other dtypes.
    """
    _sgd(
        *(parameters, gradients, momenta, learning_rate, momentum, weight_decay),
        *(keep, scale, shadow, average, share),
    )


# Without the twin's defaults: torch 2.11 does not find an argument that may change and is left out.
_sgd = torch_op(
    twin.sgd,
    mutates=("parameters", "momenta", "shadow", "average"),
    schema="(Tensor(a!) parameters, Tensor gradients, Tensor(b!) momenta, Tensor learning_rate, float momentum, "
    "float weight_decay, Tensor? keep, Tensor? scale, Tensor(c!)? shadow, Tensor(d!)? average, Tensor? share) -> ()",
)
