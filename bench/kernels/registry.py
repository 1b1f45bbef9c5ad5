"""The kernels that are measured: a line each, from its name to its cases."""

from collections.abc import Callable, Iterator

import torch

from bench.kernels.batch_norm import batch_norm_cases
from bench.kernels.cases import Case, Scale, augment_cases, pgd_cases, pooled_cases
from bench.kernels.sgd import sgd_cases

KERNELS: dict[str, Callable[[Scale, torch.dtype], Iterator[Case]]] = {
    "dual_batch_norm": batch_norm_cases,
    "pgd_step": pgd_cases,
    "augment": augment_cases,
    "pooled_features": pooled_cases,
    "sgd": sgd_cases,
}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
