"""Which loader a run takes, and why."""

import os
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

import torch

from fastarat.common.advice import command
from fastarat.common.errors import UserError
from fastarat.config.data import AugmentConfig
from fastarat.data.formats import prepared
from fastarat.data.formats.archives import is_compressed
from fastarat.data.formats.class_folders import survey
from fastarat.data.formats.find import Source, find
from fastarat.data.images.dataset import Dataset
from fastarat.data.open import open_dataset
from fastarat.data.stored import Corrupt, StoredData, common_size, decoded, open_stored, streamed

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


@dataclass(frozen=True)
class Wish:
    """What a run says of its data."""

    data: str
    loader: Literal["auto", "resident", "ffcv", "dali", "plain"]
    size: int | None
    augment: AugmentConfig
    corrupt: Corrupt


def open_for_training(wish: Wish, device: torch.device) -> Opened:
    """The data set and its loader: resident if the images fit, else FFCV for a .beton, DALI for image files and
    shards, else plain.

    Raises `UserError` if a loader that was asked for cannot read this data.
    """
    source = find(wish.data)
    if wish.loader == "resident":
        return _resident(wish, source, "asked for")
    if wish.loader != "auto":
        _require_fit(wish, source)
        return _streamed(wish, open_stored(source, wish.corrupt), wish.loader, "asked for")
    if not reads_one_by_one(source):
        return _only_resident(wish, source, device)
    fits, why = (False, "resized crops need the images as they are stored")
    if wish.augment.crop == "padded":
        fits, why = _room(_decoded_bytes(wish, source), device)
    if fits:
        return _resident(wish, source, why)
    return _streamed(wish, open_stored(source, wish.corrupt), *_fastest(source, why))


def _resident(wish: Wish, source: Source, why: str) -> Opened:
    if wish.corrupt == "fatal" or not reads_one_by_one(source):
        return Opened(open_dataset(wish.data, wish.size), "resident", why)
    stored = open_stored(source, wish.corrupt)
    return Opened(decoded(stored, wish.size), "resident", why, stored.num_skipped)


def _streamed(wish: Wish, stored: StoredData, loader: Name, why: str) -> Opened:
    return Opened(streamed(stored, wish.size, wish.augment.central_share), loader, why, stored.num_skipped)


def reads_one_by_one(source: Source) -> bool:
    """Whether an image can be had without the others."""
    if source.kind == "prepared":
        return prepared.is_rgb(prepared.read(source.path))
    decoded = source.kind in ("embedded", "cifar", "arrays")
    return not decoded and not (source.kind == "images" and is_compressed(source.path))


def _only_resident(wish: Wish, source: Source, device: torch.device) -> Opened:
    prepare = f"{command('data', 'prepare', source.name, 'OUT')} makes them so"
    if wish.augment.crop == "resized":
        raise UserError(f"resized crops need images as they are stored, and {source.name} has none: give a folder")
    dataset = open_dataset(wish.data, wish.size)
    fits, why = _room(dataset.decoded_train.images.nbytes, device)
    if not fits:
        raise UserError(f"{wish.data}: {why}; read image by image they would be loaded by --loader plain: {prepare}")
    return Opened(dataset, "resident", why)


def _decoded_bytes(wish: Wish, source: Source) -> int:
    """How much memory all training images take as pixels; of image files as if all had the first one's size."""
    if source.kind == "images":
        layout = survey(source.path)
        width, height = (wish.size, wish.size) if wish.size else layout.size or (0, 0)
        return layout.count("train") * width * height * 3
    stored = open_stored(source, wish.corrupt)
    width, height = (wish.size, wish.size) if wish.size else common_size(stored.name, stored.train)
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


def _require_fit(wish: Wish, source: Source) -> None:
    if wish.loader == "ffcv" and source.kind != "beton":
        raise UserError(
            f"FFCV reads .beton files, and {source.name} is none: "
            f"{command('data', 'build', source.name, 'OUT.beton')} makes one"
        )
    if wish.loader == "dali" and source.kind not in ("images", "shards"):
        raise UserError(
            f"DALI reads image files and shards, and {source.name} is neither: leave --loader dali and "
            "--loading.decode gpu out"
        )
    if wish.loader in PACKAGES and not is_installed(wish.loader):
        raise UserError(f"--loader {wish.loader} is not installed: pip install 'fastarat[{wish.loader}]'")
