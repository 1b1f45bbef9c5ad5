"""Which loader a run takes, and why."""

import os
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

import torch

from fastarat.common.advice import command
from fastarat.common.errors import UserError
from fastarat.config import Config
from fastarat.data.formats.find import Found, find
from fastarat.data.images.dataset import Dataset
from fastarat.data.images.whole_sets import common_size, decoded, with_decoded_test

Name = Literal["resident", "ffcv", "dali", "plain"]
RESIDENT_SHARE = 0.25
"""Of the device's memory; the step needs the most."""
PACKAGES = {"ffcv": "ffcv", "dali": "nvidia"}


@dataclass(frozen=True)
class Opened:
    """A data set, opened for the loader that a run takes."""

    dataset: Dataset
    loader: Name
    why: str


def open_for_training(config: Config, device: torch.device) -> Opened:
    """The data set and its loader: resident if the images fit, else FFCV for a .beton, DALI for image files and
    shards, else plain.

    Raises `UserError` if a loader that was asked for cannot read this data.
    """
    found = find(config.data)
    if config.loader != "auto":
        return _opened(config, found, config.loader, "asked for")
    if config.loading.decode == "gpu":
        return _opened(config, found, "dali", "only DALI decodes on the GPU")
    if not found.is_one_by_one:
        return _only_resident(config, found, device)
    fits, why = (False, "resized crops need the images as they are stored")
    if config.augment.crop == "padded":
        fits, why = _room(_decoded_bytes(config, found), device)
    return _opened(config, found, *(("resident", why) if fits else _fastest(found, why)))


def _opened(config: Config, found: Found, loader: Name, why: str) -> Opened:
    if loader == "resident" and (config.loading.corrupt == "fatal" or not found.is_one_by_one):
        return Opened(found.open(config.size), loader, why)
    _require_fit(loader, found)
    stored = found.open_stored(config.loading.corrupt)
    if loader == "resident":
        return Opened(decoded(stored, config.size), loader, why)
    size = (config.size, config.size) if config.size else None
    return Opened(with_decoded_test(stored, size, config.augment.central_share), loader, why)


def _only_resident(config: Config, found: Found, device: torch.device) -> Opened:
    prepare = f"{command('data', 'prepare', found.name, 'OUT')} makes them so"
    if config.augment.crop == "resized":
        raise UserError(f"resized crops need images as they are stored, and {found.name} has none: give a folder")
    dataset = found.open(config.size)
    fits, why = _room(dataset.decoded_train.images.nbytes, device)
    if not fits:
        raise UserError(f"{config.data}: {why}; read image by image they would be loaded by --loader plain: {prepare}")
    return Opened(dataset, "resident", why)


def _decoded_bytes(config: Config, found: Found) -> int:
    """How much memory all training images take as pixels; of image files as if all had the first one's size."""
    if found.format.decode:
        count, size = found.format.decode.outline(found.path)
        width, height = (config.size, config.size) if config.size else size
        return count * width * height * 3
    stored = found.open_stored(config.loading.corrupt)
    train = stored.stored_splits["train"]
    width, height = (config.size, config.size) if config.size else common_size(stored.name, train)
    return len(train) * width * height * 3


def _room(num_bytes: int, device: torch.device) -> tuple[bool, str]:
    if device.type == "cuda":
        memory, where = torch.cuda.get_device_properties(device).total_memory, "the GPU"
    else:
        memory, where = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "memory"
    size = f"{num_bytes / 2**20:,.1f} MiB of pixels"
    if num_bytes <= RESIDENT_SHARE * memory:
        return True, f"{size} stay on the device"
    return False, f"{size} are more than a quarter of {where} ({memory / 2**30:,.0f} GiB)"


def _fastest(found: Found, why: str) -> tuple[Name, str]:
    """The loader for images that do not stay on the device, and why."""
    wanted = found.format.fastest
    if wanted is None:
        return "plain", f"{why}, and a {found.format.label} is read from the disk"
    if is_installed(wanted):
        return wanted, f"{why}, and {wanted} reads this kind of data"
    return "plain", f"{why}, and {wanted} is not installed (pip install 'fastarat[{wanted}]' for speed)"


def is_installed(loader: str) -> bool:
    """Whether the package of this loader can be found; it is not imported, which would take seconds."""
    if find_spec(PACKAGES[loader]) is None:
        return False
    return loader != "dali" or find_spec("nvidia.dali") is not None


def _require_fit(loader: Name, found: Found) -> None:
    if loader == "ffcv" and found.format.fastest != "ffcv":
        raise UserError(
            f"FFCV reads .beton files, and {found.name} is none: "
            f"{command('data', 'build', found.name, 'OUT.beton')} makes one"
        )
    if loader == "dali" and found.format.fastest != "dali":
        raise UserError(
            f"DALI reads image files and shards, and {found.name} is neither: leave --loader dali and "
            "--loading.decode gpu out"
        )
    if loader in PACKAGES and not is_installed(loader):
        raise UserError(f"--loader {loader} is not installed: pip install 'fastarat[{loader}]'")
