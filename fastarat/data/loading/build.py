"""Loaders by name: one line each."""

import os
from collections.abc import Callable
from typing import NamedTuple

import torch
from fastarat_kernels.implementations import Kernels

from fastarat.common.processes import num_here
from fastarat.config.data import AugmentConfig, LoadingConfig
from fastarat.data.images.dataset import Images
from fastarat.data.images.stored import StoredImages
from fastarat.data.loading.decoders.decoder import Decoder
from fastarat.data.loading.loader import Loader
from fastarat.data.loading.resident import ResidentLoader
from fastarat.data.loading.streaming import StreamLoader

MOST_WORKERS = 16
"""What a machine with many cores starts for each process, unless it is told otherwise."""


class Destination(NamedTuple):
    """Where batches go: one of the processes that train together, its device and its number format."""

    device: torch.device
    dtype: torch.dtype
    rank: int
    num_processes: int
    kernels: Kernels


def build_loader(
    name: str,
    images: Images | StoredImages,
    max_value: int,
    augment: AugmentConfig,
    loading: LoadingConfig,
    size_in: Callable[[int], int | None],
    batch: int,
    seed: int,
    destination: Destination,
    extra: Images | None = None,
    ratio: float = 0.5,
) -> Loader:
    """The loader `name` for these training images: decoded ones stay on the device, others are decoded as needed."""
    if isinstance(images, Images):
        return ResidentLoader(images, max_value, augment, batch, seed, *destination, extra, ratio)
    decoder = build_decoder(name, images, loading, destination.num_processes, destination.device)
    return StreamLoader(images, decoder, augment, loading, size_in, batch, seed, *destination)


def build_decoder(
    name: str, images: StoredImages, loading: LoadingConfig, num_processes: int, device: torch.device
) -> Decoder:
    """The decoder `name`: ffcv, dali or plain. Raises `UserError` if it is not installed."""
    workers, pin = num_workers(loading, num_processes), device.type == "cuda"
    if name == "ffcv":
        from fastarat.data.loading.decoders.ffcv import FFCVDecoder

        return FFCVDecoder(images, workers, pin)
    if name == "dali":
        from fastarat.data.loading.decoders.dali import DALIDecoder

        return DALIDecoder(images, workers, loading.decode, pin, device.index)
    from fastarat.data.loading.decoders.plain import PlainDecoder

    return PlainDecoder(images, workers, pin)


def num_workers(loading: LoadingConfig, num_processes: int) -> int:
    """Threads or processes that decode for each of `num_processes`, which may be on several machines."""
    cores = len(os.sched_getaffinity(0)) // num_here(num_processes)
    return loading.workers or min(max(cores, 1), MOST_WORKERS)
