"""Which loaders are compared on which form of the images, and what each feeds."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from bench.loaders.stores import Shape, Stored, Stores
from fastarat.data.formats.find import find
from fastarat.data.images.stored import StoredImages

Crop = Literal["whole", "resized"]
Device = Literal["cpu", "cuda"]
Reader = tuple[str, Shape]
"""a loader, and what it reads"""

SMALL: tuple[Reader, ...] = (
    ("resident", ("arrays", "raw")),
    ("plain", ("arrays", "raw")),
    ("ffcv", ("beton", "raw")),
    ("ffcv-own", ("beton", "raw")),
    ("plain", ("files", "png")),
    ("dali", ("files", "png")),
)
PHOTOS: tuple[Reader, ...] = (
    ("plain", ("files", "jpeg")),
    ("ffcv", ("beton", "jpeg")),
    ("ffcv-own", ("beton", "jpeg")),
    ("dali", ("files", "jpeg")),
)
BASE = "plain"
"""what the others are compared with, on the same stored images"""


class Plan(NamedTuple):
    """What all loaders are measured at on one kind of images: fields of a `LoaderCase`."""

    crop: Crop
    size: int
    batch: int
    recipe: str
    fed_size: int | None
    fed_batch: int | None = None
    attack_steps: int | None = None


@dataclass(frozen=True, kw_only=True)
class LoaderCase:
    """What one process measures: a loader on a form of the images, or fastarat's step of a recipe fed by it."""

    loader: str
    stored: Stored
    path: str
    """of the store"""
    reference: str
    """the store whose images PIL reads for the comparison"""
    crop: Crop
    """all of each image, which has that size; or a part of random area and shape, resized to it"""
    size: int
    """pixels of a side of what is decoded"""
    batch: int
    workers: int
    decode: Literal["cpu", "gpu"] = "cpu"
    """DALI: where JPEGs are decoded"""
    device: Device
    """of the training"""
    recipe: str | None
    """its; None: no training is fed"""
    fed_size: int | None
    """pixels of a side that its random resized crops are brought to; None: padded crops of images as they are stored"""
    fed_batch: int | None
    """None: the recipe's"""
    attack_steps: int | None

    def images(self) -> StoredImages:
        """The training images, where they lie."""
        return find(self.path).open_stored().stored_splits["train"]

    @property
    def key(self) -> dict[str, Any]:
        """The fields of a row that tell it from the others of its kind."""
        return {name: getattr(self, name) for name in ("loader", "stored", "decode", "workers", "size")}

    @property
    def title(self) -> str:
        """A few words."""
        return f"{self.loader} on {self.stored}{', GPU' * (self.decode == 'gpu')}, {self.workers} workers"

    @property
    def stages(self) -> tuple[str, ...]:
        """What is measured of it."""
        return ("first", "steady", *(["training"] if self.recipe else []))


def small_plan(device: Device, smoke: bool, size: int) -> Plan:
    """For images that are shown whole, as they are stored."""
    if smoke:
        return Plan("whole", size, 16, "cifar10-tiny-arat", None, 8, 1)
    return Plan("whole", size, 128, "cifar10-tiny-arat" if device == "cpu" else "cifar10-resnet18-arat", None)


def photo_plan(device: Device, smoke: bool) -> Plan:
    """For photographs in random resized crops."""
    if smoke:
        return Plan("resized", 32, 8, "cifar10-tiny-arat", 32, 4, 1)
    if device == "cpu":
        return Plan("resized", 224, 64, "imagenette-resnet18-arat", 128, 16, 3)  # seconds a step all the same
    return Plan("resized", 224, 64, "imagenette-resnet18-arat", 128)


def cases_of(
    readers: Sequence[Reader], stores: Stores, plan: Plan, *, workers: Sequence[int], device: Device
) -> list[LoaderCase]:
    """These loaders, of what is stored, with each number of workers; on a GPU DALI decodes JPEGs there too."""
    found = []
    for count in workers:
        for loader, shape in readers:
            if shape not in stores.paths or (loader == "resident" and count != workers[0]):
                continue  # the resident loader has no workers
            where = {"path": str(stores.paths[shape]), "reference": str(stores.reference), "device": device}
            case = LoaderCase(loader=loader, stored=shape[1], workers=count, **where, **plan._asdict())
            found.append(replace(case, recipe=None) if loader == "ffcv-own" else case)
    on_gpu = ("dali", "jpeg", "cuda")
    return found + [replace(c, decode="gpu") for c in found if (c.loader, c.stored, c.device) == on_gpu]
