"""Which loaders are compared on which form of the images, and what each feeds."""

from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from bench.loaders.feeds import Form
from bench.loaders.stores import Shape, Stored, Stores
from bench.loaders.training import Fed

Device = Literal["cpu", "cuda"]

SMALL: tuple[tuple[str, Shape], ...] = (
    ("resident", ("arrays", "raw")),
    ("plain", ("arrays", "raw")),
    ("ffcv", ("beton", "raw")),
    ("ffcv-own", ("beton", "raw")),
    ("plain", ("files", "png")),
    ("dali", ("files", "png")),
)
PHOTOS: tuple[tuple[str, Shape], ...] = (
    ("plain", ("files", "jpeg")),
    ("ffcv", ("beton", "jpeg")),
    ("ffcv-own", ("beton", "jpeg")),
    ("dali", ("files", "jpeg")),
)
BASE = "plain"
"""what the others are compared with, on the same stored images"""


class Plan(NamedTuple):
    """What a kind of images is measured at."""

    size: int
    """pixels of a side of what is decoded"""
    batch: int
    recipe: str
    """of the training that is fed"""
    fed_size: int | None
    """pixels of a side in that training; None: images as they are stored, in padded crops"""
    fed_batch: int | None = None
    """None: the recipe's"""
    attack_steps: int | None = None


@dataclass(frozen=True)
class LoaderCase:
    """A loader on a form of the images."""

    loader: str
    stored: Stored
    form: Form
    fed: Fed | None
    """None: no training is fed by it"""

    @property
    def key(self) -> dict[str, Any]:
        """The fields of a row that tell it from the others of its kind."""
        kinds = {"loader": self.loader, "stored": self.stored, "decode": self.form.decode}
        return {**kinds, "workers": self.form.workers, "size": self.form.size}

    @property
    def title(self) -> str:
        """A few words."""
        where = ", GPU" if self.form.decode == "gpu" else ""
        return f"{self.loader} on {self.stored}{where}, {self.form.workers} workers"

    @property
    def stages(self) -> tuple[str, ...]:
        """What is measured of it."""
        return ("first", "steady", *(["training"] if self.fed else []))


def small_plan(device: Device, smoke: bool, size: int) -> Plan:
    """For images as they are stored."""
    if smoke:
        return Plan(size, 16, "cifar10-tiny-arat", None, 8, 1)
    return Plan(size, 128, "cifar10-tiny-arat" if device == "cpu" else "cifar10-resnet18-arat", None)


def photo_plan(device: Device, smoke: bool) -> Plan:
    """For photographs in random resized crops."""
    if smoke:
        return Plan(32, 8, "cifar10-tiny-arat", 32, 4, 1)
    if device == "cpu":
        return Plan(224, 64, "imagenette-resnet18-arat", 128, 16, 3)  # seconds a step all the same
    return Plan(224, 64, "imagenette-resnet18-arat", 128)


def small_cases(stores: Stores, plan: Plan, workers: list[int], *, device: Device) -> list[LoaderCase]:
    """All loaders on images that are shown whole."""
    return _cases(SMALL, stores, plan, crop="whole", workers=workers, device=device)


def photo_cases(stores: Stores, plan: Plan, workers: list[int], *, device: Device) -> list[LoaderCase]:
    """All loaders on JPEGs, of which parts are resized; on a GPU DALI decodes there too."""
    cases = _cases(PHOTOS, stores, plan, crop="resized", workers=workers, device=device)
    return cases + [_on_gpu(case) for case in cases if case.loader == "dali" and device == "cuda"]


def shapes(names: tuple[tuple[str, Shape], ...], loaders: list[str], stored: list[str]) -> set[Shape]:
    """The forms of the images that these loaders read, of those that are stored so."""
    return {shape for loader, shape in names if loader in loaders and shape[1] in stored}


def _cases(
    names: Any, stores: Stores, plan: Plan, *, crop: Any, workers: list[int], device: Device
) -> list[LoaderCase]:
    found = []
    for count in workers:
        for loader, shape in names:
            if shape not in stores.paths or (loader == "resident" and count != workers[0]):
                continue  # the resident loader has no workers
            path = str(stores.paths[shape])
            form = Form(loader, path, str(stores.reference), plan.size, crop, plan.batch, count)
            sizes = (plan.fed_size, plan.fed_batch, plan.attack_steps)
            fed = None if loader == "ffcv-own" else Fed(plan.recipe, loader, path, *sizes, count, "cpu", device)
            found.append(LoaderCase(loader, shape[1], form, fed))
    return found


def _on_gpu(case: LoaderCase) -> LoaderCase:
    assert case.fed
    return replace(case, form=replace(case.form, decode="gpu"), fed=replace(case.fed, decode="gpu"))
