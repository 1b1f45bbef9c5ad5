"""A run's loader, built from its configuration."""

from typing import Any

import torch
from fastarat_kernels.implementations import Kernels

from fastarat.common.distributed import World
from fastarat.common.processes import num_cores, num_here
from fastarat.config import Config
from fastarat.config.data import LoadingConfig
from fastarat.data.images.dataset import Images
from fastarat.data.images.stored import StoredImages
from fastarat.data.loading.decoders.decoder import Decoder, decoder_named
from fastarat.data.loading.loader import Loader
from fastarat.data.loading.resident import ResidentLoader
from fastarat.data.loading.sampling import Sampling
from fastarat.data.loading.streaming import StreamLoader

MOST_WORKERS = 16
"""What a machine with many cores starts for each process, unless it is told otherwise."""


def build_loader(
    config: Config,
    loader: str,
    images: Images | StoredImages,
    *,
    max_value: int,
    world: World,
    dtype: torch.dtype,
    kernels: Kernels,
    extra: Images | None = None,
) -> Loader:
    """The loader of these training images: decoded ones stay on the device, others `loader` decodes as needed."""
    sampling = Sampling(
        config.batch,
        config.seed,
        config.augment,
        order=config.loading.order,
        size_in=config.size_in,
        rank=world.rank,
        num_processes=world.size,
    )
    place: dict[str, Any] = {"device": world.device, "dtype": dtype, "kernels": kernels}
    if isinstance(images, Images):
        return ResidentLoader(images, max_value, sampling, **place, extra=extra, ratio=config.extra.ratio)
    decoder = build_decoder(loader, images, config.loading, num_processes=world.size, device=world.device)
    return StreamLoader(images, decoder, sampling, **place)


def build_decoder(
    name: str, images: StoredImages, loading: LoadingConfig, *, num_processes: int, device: torch.device
) -> Decoder:
    """The decoder `name` of `DECODERS`. Raises `UserError` if its package is not installed."""
    decoder = decoder_named(name)
    options = {"gpu": device} if loading.decode == "gpu" and decoder.on_gpu else {}
    return decoder(images, num_workers(loading, num_processes), device.type == "cuda", **options)


def num_workers(loading: LoadingConfig, num_processes: int) -> int:
    """Threads or processes that decode for each of `num_processes`, which may be on several machines."""
    cores = num_cores() // num_here(num_processes)
    return loading.workers or min(max(cores, 1), MOST_WORKERS)
