"""Which loader a run takes, and why."""

import os
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

import torch

from fastarat.common.advice import command
from fastarat.common.errors import UserError
from fastarat.config import Config
from fastarat.data.formats import prepared
from fastarat.data.formats.archives import is_compressed
from fastarat.data.formats.class_folders import survey
from fastarat.data.formats.find import Source, find
from fastarat.data.images.dataset import Dataset
from fastarat.data.open import open_dataset
from fastarat.data.stored import common_size, decoded, open_stored, streamed

Name = Literal["resident", "ffcv", "dali", "plain"]
RESIDENT_SHARE = 0.25
"""Of the device's memory; the step needs the most."""
FASTEST = {"beton": "ffcv", "images": "dali", "shards": "dali"}
"""The loader for each kind of stored images where it is installed."""
PACKAGES = {"ffcv": "ffcv", "dali": "nvidia"}


@dataclass(frozen=True)
class Opened:
    """A data set, opened for the loader that a run takes."""

    dataset: Dataset
    loader: Name
    why: str
    num_skipped: int = 0
    """images left out because they cannot be decoded"""


def open_for_training(config: Config, device: torch.device) -> Opened:
    """The data set and its loader: resident if the images fit, else FFCV for a .beton, DALI for image files and
    shards, else plain.

    Raises `UserError` if a loader that was asked for cannot read this data.
    """
    source = find(config.data)
    if config.loader != "auto":
        return _opened(config, source, config.loader, "asked for")
    if config.loading.decode == "gpu":
        return _opened(config, source, "dali", "only DALI decodes on the GPU")
    if not reads_one_by_one(source):
        return _only_resident(config, source, device)
    fits, why = (False, "resized crops need the images as they are stored")
    if config.augment.crop == "padded":
        fits, why = _room(_decoded_bytes(config, source), device)
    return _opened(config, source, *(("resident", why) if fits else _fastest(source, why)))


def _opened(config: Config, source: Source, loader: Name, why: str) -> Opened:
    if loader == "resident" and (config.loading.corrupt == "fatal" or not reads_one_by_one(source)):
        return Opened(open_dataset(config.data, config.size), loader, why)
    _require_fit(loader, source)
    stored = open_stored(source, config.loading.corrupt)
    if loader == "resident":
        dataset = decoded(stored, config.size)
    else:
        dataset = streamed(stored, config.size, config.augment.central_share)
    return Opened(dataset, loader, why, stored.num_skipped)


def reads_one_by_one(source: Source) -> bool:
    """Whether an image can be had without the others."""
    if source.kind == "prepared":
        return prepared.is_rgb(prepared.read(source.path))
    decoded = source.kind in ("embedded", "cifar", "arrays")
    return not decoded and not (source.kind == "images" and is_compressed(source.path))


def _only_resident(config: Config, source: Source, device: torch.device) -> Opened:
    prepare = f"{command('data', 'prepare', source.name, 'OUT')} makes them so"
    if config.augment.crop == "resized":
        raise UserError(f"resized crops need images as they are stored, and {source.name} has none: give a folder")
    dataset = open_dataset(config.data, config.size)
    fits, why = _room(dataset.decoded_train.images.nbytes, device)
    if not fits:
        raise UserError(f"{config.data}: {why}; read image by image they would be loaded by --loader plain: {prepare}")
    return Opened(dataset, "resident", why)


def _decoded_bytes(config: Config, source: Source) -> int:
    """How much memory all training images take as pixels; of image files as if all had the first one's size."""
    if source.kind == "images":
        layout = survey(source.path)
        width, height = (config.size, config.size) if config.size else layout.size or (0, 0)
        return layout.count("train") * width * height * 3
    stored = open_stored(source, config.loading.corrupt)
    width, height = (config.size, config.size) if config.size else common_size(stored.name, stored.train)
    return len(stored.train) * width * height * 3


def _room(num_bytes: int, device: torch.device) -> tuple[bool, str]:
    if device.type == "cuda":
        memory, where = torch.cuda.get_device_properties(device).total_memory, "the GPU"
    else:
        memory, where = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "memory"
    size = f"{num_bytes / 2**20:,.1f} MiB of pixels"
    if num_bytes <= RESIDENT_SHARE * memory:
        return True, f"{size} stay on the device"
    return False, f"{size} are more than a quarter of {where} ({memory / 2**30:,.0f} GiB)"


def _fastest(source: Source, why: str) -> tuple[Name, str]:
    """The loader for images that do not stay on the device, and why."""
    wanted = FASTEST.get(source.kind)
    if wanted is None:
        return "plain", f"{why}, and a prepared set is read from the disk"
    if is_installed(wanted):
        return wanted, f"{why}, and {wanted} reads this kind of data"  # type: ignore[return-value]
    return "plain", f"{why}, and {wanted} is not installed (pip install 'fastarat[{wanted}]' for speed)"


def is_installed(loader: str) -> bool:
    """Whether the package of this loader can be found; it is not imported, which would take seconds."""
    if find_spec(PACKAGES[loader]) is None:
        return False
    return loader != "dali" or find_spec("nvidia.dali") is not None


def _require_fit(loader: Name, source: Source) -> None:
    if loader == "ffcv" and source.kind != "beton":
        raise UserError(
            f"FFCV reads .beton files, and {source.name} is none: "
            f"{command('data', 'build', source.name, 'OUT.beton')} makes one"
        )
    if loader == "dali" and source.kind not in ("images", "shards"):
        raise UserError(
            f"DALI reads image files and shards, and {source.name} is neither: leave --loader dali and "
            "--loading.decode gpu out"
        )
    if loader in PACKAGES and not is_installed(loader):
        raise UserError(f"--loader {loader} is not installed: pip install 'fastarat[{loader}]'")
