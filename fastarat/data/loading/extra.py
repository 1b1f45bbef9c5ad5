"""Extra images beside the training set's own: which of them a batch has, and where in it.

A share of every batch is extra (Rebuffi et al., 2021, "Fixing data augmentation to improve adversarial robustness";
Wang et al., 2023, "Better diffusion models further improve adversarial training"); the rest follows the epoch's order
of the training images. The extra images have passes of their own, which go on over epochs: each image is used once
before any is used again. All of it is a function of (seed, epoch, step).
"""

import torch
from fastarat_kernels import philox
from fastarat_kernels.philox import Stream
from torch import Tensor

from fastarat.common.errors import UserError
from fastarat.config.data import ExtraConfig
from fastarat.data.images.classes import are_numbers, in_order_of
from fastarat.data.images.dataset import Dataset
from fastarat.data.loading.sampling import Sampling
from fastarat.data.open import open_dataset


class Mixture:
    """Batches of `num_own` training and `num_images` extra images; `ratio` is the extra ones' share of each batch.

    Raises `UserError` for a share that no batch can have.
    """

    def __init__(self, num_own: int, num_images: int, sampling: Sampling, *, ratio: float):
        self.num_own, self.num_images, self.batch, self.seed = num_own, num_images, sampling.batch, sampling.seed
        self.num_extra, batch = round(ratio * sampling.batch), sampling.batch
        if not 0 < self.num_extra < batch:
            raise UserError(
                f"extra ratio {ratio} makes {self.num_extra} of a batch of {batch} images extra: "
                "give another --extra.ratio or a larger --batch"
            )
        if self.num_extra > num_images:
            raise UserError(
                f"{self.num_extra} extra images in a batch are more than the {num_images} there are: "
                "give a smaller --extra.ratio or a larger set"
            )

    def order(self, epoch: int, device: torch.device) -> Tensor:
        """The epoch's images, batch after batch: int64 [steps * batch], extra ones counted on from `num_own`.

        Extra images lie evenly among the others, so that several processes get equal shares.
        """
        steps = self.num_own // self.batch
        place = torch.arange(self.batch, device=device)
        is_extra = (place + 1) * self.num_extra // self.batch > place * self.num_extra // self.batch
        own = philox.permutation(self.seed, epoch, self.num_own, device)[: steps * (self.batch - self.num_extra)]
        order = torch.empty(steps, self.batch, dtype=torch.int64, device=device)
        order[:, ~is_extra] = own.view(steps, -1)
        order[:, is_extra] = self.num_own + self._extra(epoch, steps * self.num_extra, device).view(steps, -1)
        return order.flatten()

    def _extra(self, epoch: int, count: int, device: torch.device) -> Tensor:
        """The extra images of an epoch that takes `count` of them: a part of passes that follow each other."""
        first = (epoch - 1) * count
        passes = range(first // self.num_images, (first + count - 1) // self.num_images + 1)
        orders = [philox.permutation(self.seed, n, self.num_images, device, Stream.EXTRA_ORDER) for n in passes]
        begin = first - passes.start * self.num_images
        return torch.cat(orders)[begin : begin + count]


def open_extra(settings: ExtraConfig, dataset: Dataset) -> Dataset | None:
    """The data set of the extra images, if one is asked for, its classes in the order of `dataset`'s. Raises
    `UserError` if it does not fit.

    Classes that are only numbered, as in an .npz file, may be fewer: the first ones.
    """
    if settings.data is None:
        return None
    extra = open_dataset(settings.data)
    shape, wanted = extra.image_shape, dataset.image_shape
    if shape != wanted or extra.max_value != dataset.max_value:
        raise UserError(
            f"the extra images {settings.data} are {_described(extra)}, those of {dataset.name} "
            f"{_described(dataset)}: give --extra.data a set of the same"
        )
    first = dataset.classes[: len(extra.classes)] if are_numbers(extra.classes) else dataset.classes
    return in_order_of(extra, first, dataset.name, "give --extra.data a set of the same classes")


def _described(dataset: Dataset) -> str:
    height, width, channels = dataset.image_shape
    return f"{width}x{height}x{channels} of 0 … {dataset.max_value}"
