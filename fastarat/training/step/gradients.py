"""The mean of a step's gradients over processes, in a few buckets that travel one after the other.

A bucket's all-reduce is started, and waited for when all are on their way. In eager steps that is after the whole
backward pass; compiled steps start each as soon as the backward pass has it (`fastarat.training.compiling.overlap`).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastarat.common.distributed import World, finished, started_mean

LEAST_BYTES = 8 * 2**20
"""of a bucket, but the last: a ring over NVLink takes some 0.1 ms for as much, several times its latency, and the last
one of a ResNet-18, which nothing hides, has 5 MB of its 45; `bench/scaling.py` has the model"""


def mean_gradients(gradients: list[Tensor], world: World, *, bf16: bool = False) -> list[Tensor]:
    """The mean of each gradient over all processes, in its shape and dtype.

    `gradients`: of the parameters, in the order in which a forward pass uses them: the last are ready first. `bf16`:
    they travel and are added in bfloat16, half the bytes, each sum rounded to 8 bits.
    """
    if world.group is None:
        return gradients
    buckets = in_buckets([gradient.nbytes for gradient in gradients])
    on_their_way = [started_mean(_flat([gradients[i] for i in bucket], bf16), world) for bucket in buckets]
    means = list(gradients)
    for bucket, mean in zip(buckets, on_their_way, strict=True):
        parts = finished(mean, world).split([gradients[i].numel() for i in bucket])
        for i, part in zip(bucket, parts, strict=True):
            means[i] = part.view_as(gradients[i]).to(gradients[i].dtype)
    return means


def in_buckets(num_bytes: Sequence[int], least: int = LEAST_BYTES) -> list[list[int]]:
    """The places of tensors of these sizes, from the last to the first, in buckets of `least` bytes or more; the bucket
    of the first tensors may be smaller."""
    buckets: list[list[int]] = []
    filled = least
    for i in reversed(range(len(num_bytes))):
        if filled >= least:
            buckets.append([])
            filled = 0
        buckets[-1].append(i)
        filled += num_bytes[i]
    return buckets


def _flat(tensors: list[Tensor], bf16: bool) -> Tensor:
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    return flat.bfloat16() if bf16 else flat
