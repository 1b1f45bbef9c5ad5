"""The resident loader: the whole set as uint8 on the device; a batch costs one gather there."""

from collections.abc import Generator

import numpy as np
import torch
from fastarat_kernels import philox
from fastarat_kernels.augment.gather import gather
from fastarat_kernels.implementations import PYTORCH, Kernels
from torch import Tensor

from fastarat.data.images.dataset import Images
from fastarat.data.loading.extra import Mixture
from fastarat.data.loading.loader import Batch, Loader
from fastarat.data.loading.sampling import Sampling


class ResidentLoader(Loader):
    """See `Loader`. Pixels are `images / max_value`; batches are made by `kernels`, in `dtype`.

    If there are `extra` images, a share `ratio` of every batch is of them; samples are of `images` alone. Raises
    `UserError` if a batch cannot have that share.
    """

    def __init__(
        self,
        images: Images,
        max_value: int,
        sampling: Sampling,
        *,
        device: torch.device,
        dtype: torch.dtype,
        kernels: Kernels = PYTORCH,
        extra: Images | None = None,
        ratio: float = 0.5,
    ):
        super().__init__(len(images.labels), sampling, device)
        parts = [images] if extra is None else [images, extra]
        self.images = _joined([part.images for part in parts], device)
        self.labels = _joined([part.labels for part in parts], device)
        self.max_value, self.dtype, self.kernels = max_value, dtype, kernels
        self.mixture = Mixture(self.num_images, len(extra.labels), sampling, ratio=ratio) if extra else None

    def close(self) -> None:
        """See `Loader.close`: nothing runs."""

    def _order(self, epoch: int) -> Tensor:
        if self.mixture:
            return self.mixture.order(epoch, self.images.device)
        return philox.permutation(self.sampling.seed, epoch, self.num_images, self.images.device)

    def _batches(self, order: Tensor, batch: int, epoch: int, *, augment: bool) -> Generator[Batch, None, None]:
        for whole in order.split(batch):
            index, rows = self.sampling.share(whole)
            if augment:
                x = self._augmented(self.images, index, epoch)
            else:
                x = gather(self.images, index, self.max_value, self.dtype)
            yield Batch(x, self.labels[index], rows)


def _joined(parts: list[np.ndarray], device: torch.device) -> Tensor:
    """One tensor on the device, which each part is copied into: the host holds no second copy of all."""
    first = parts[0]
    dtype = torch.from_numpy(first[:0].copy()).dtype
    joined = torch.empty((sum(map(len, parts)), *first.shape[1:]), dtype=dtype, device=device)
    for part, space in zip(parts, joined.split([len(part) for part in parts]), strict=True):
        space.copy_(torch.from_numpy(part.copy()))
    return joined
