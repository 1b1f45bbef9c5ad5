"""The features' cases of the kernel benchmark."""

from collections.abc import Iterator
from functools import partial

import torch
from fastarat_kernels.pooled_features import pooled_features, twin

from bench.kernels.cases import Draw, Inputs, KernelCase, Scale, aligned_maps, variants_of


def cases(scale: Scale, dtype: torch.dtype) -> Iterator[KernelCase]:
    """The maps of the aligned layers, of both halves."""
    for channels, side in aligned_maps(scale):
        shape = (2 * scale.batch, channels, side, side)
        map_bytes, feature_bytes = torch.Size(shape).numel() * dtype.itemsize, 4 * shape[0] * channels
        yield KernelCase(
            "pooled_features",
            f"{channels}x{side}x{side}",
            shape,
            dtype,
            # reads the map and writes features; then reads the map and their gradient, and writes the map's
            {"forward": map_bytes + feature_bytes, "backward": 2 * map_bytes + feature_bytes},
            partial(_pooled_inputs, shape, dtype),
            twin.pooled_features,
            variants_of(twin.pooled_features, pooled_features),
        )


def _pooled_inputs(shape: tuple[int, ...], dtype: torch.dtype, draw: Draw) -> Inputs:
    return {"z": (draw.normal(*shape) + 0.3).to(dtype).requires_grad_()}
