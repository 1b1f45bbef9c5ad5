"""Which loader a run takes, and why."""

from dataclasses import dataclass
from importlib.util import find_spec

import torch

from fastarat.common.console import command, require_none
from fastarat.common.errors import UserError
from fastarat.common.memory_limit import usable_memory
from fastarat.common.processes import num_here
from fastarat.config import Config
from fastarat.config.data import DECODERS
from fastarat.data.formats.find import FORMATS, Found, find
from fastarat.data.images.dataset import Dataset, class_problems
from fastarat.data.images.whole_sets import common_size, decoded, with_decoded_test
from fastarat.data.loading.decoders.decoder import decoder_named

RESIDENT_SHARE = 0.25
"""Of the device's memory; the step needs the most."""


@dataclass(frozen=True)
class Opened:
    """A data set, opened for the loader that a run takes."""

    dataset: Dataset
    loader: str
    why: str


def open_for_training(config: Config, device: torch.device) -> Opened:
    """The data set, and its loader by the first of these rules that applies:

    - the one that was asked for;
    - dali, where JPEGs are to be decoded on the GPU;
    - resident, where an image cannot be had without the others;
    - resident, where crops are padded and the pixels, of all processes on a CPU, take up to a quarter of the device's
      memory;
    - the first of `DECODERS` that is made for the format, where it is installed; else plain.

    Raises `UserError` if a loader that was asked for cannot read this data, or none can, or it has one class alone.
    """
    opened = _opened_by_rule(config, device)
    require_none(config.data, class_problems(len(opened.dataset.classes)))
    return opened


def _opened_by_rule(config: Config, device: torch.device) -> Opened:
    found = find(config.data)
    if config.loader != "auto":
        return _opened(config, found, config.loader, why="asked for")
    if config.loading.decode == "gpu":
        return _opened(config, found, "dali", why="only DALI decodes on the GPU")
    if not found.is_one_by_one:
        return _only_resident(config, found, device)
    fits, why = False, "resized crops need the images as they are stored"
    if config.augment.crop == "padded":
        fits, why = _room(config, _decoded_bytes(config, found), device)
    loader, why = ("resident", why) if fits else _fastest(found, why)
    return _opened(config, found, loader, why=why)


def _opened(config: Config, found: Found, loader: str, *, why: str) -> Opened:
    if loader != "resident":
        decoder = decoder_named(loader)
        if decoder.made_for and not _is_made_for(loader, found):
            raise UserError(decoder.refusal(found.name))
        if not is_installed(loader):
            raise UserError(f"--loader {loader} is not installed: pip install 'fastarat[{loader}]'")
        size = (config.size, config.size) if config.size else None
        stored = found.open_stored(config.loading.corrupt)
        return Opened(with_decoded_test(stored, size, config.augment.central_share), loader, why)
    if config.loading.corrupt == "skip" and found.is_one_by_one:
        return Opened(decoded(found.open_stored("skip"), config.size), loader, why)
    return Opened(found.open(config.size), loader, why)


def _only_resident(config: Config, found: Found, device: torch.device) -> Opened:
    prepare = f"{command('data', 'prepare', found.name, 'OUT')} makes them so"
    if config.augment.crop == "resized":
        raise UserError(f"resized crops need images as they are stored, and {found.name} has none: give a folder")
    dataset = found.open(config.size)
    fits, why = _room(config, dataset.decoded_train.images.nbytes, device)
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


def _room(config: Config, num_bytes: int, device: torch.device) -> tuple[bool, str]:
    """Whether `num_bytes` bytes of pixels may stay on the device, and why. Each process has its own."""
    size, processes = f"{num_bytes / 2**20:,.1f} MiB of pixels", 1
    if device.type == "cuda":
        memory, where = torch.cuda.get_device_properties(device).total_memory, "the GPU"
    else:
        memory, where, processes = usable_memory(), "memory", num_here(config.num_processes)
    if num_bytes * processes <= RESIDENT_SHARE * memory:
        return True, f"{size} stay on the device"
    each = f" in each of {processes} processes" if processes > 1 else ""
    return False, f"{size}{each} are more than a quarter of {where} ({memory / 2**30:,.1f} GiB)"


def _fastest(found: Found, why: str) -> tuple[str, str]:
    """The loader for images that do not stay on the device, and why."""
    wanted = next((name for name in DECODERS if _is_made_for(name, found)), None)
    if wanted is None:
        return "plain", f"{why}, and a {found.format.label} is read from the disk"
    if is_installed(wanted):
        return wanted, f"{why}, and {wanted} reads this kind of data"
    return "plain", f"{why}, and {wanted} is not installed (pip install 'fastarat[{wanted}]' for speed)"


def _is_made_for(loader: str, found: Found) -> bool:
    return any(found.format is FORMATS[name] for name in decoder_named(loader).made_for)


def is_installed(loader: str) -> bool:
    """Whether the package of this loader, if it needs one, can be found; importing it would take seconds."""
    package = decoder_named(loader).package
    try:
        return not package or find_spec(package) is not None
    except ModuleNotFoundError:  # not even the package round it
        return False
