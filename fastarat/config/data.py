"""How training images are read and augmented, and which images are trained on in addition."""

from dataclasses import dataclass
from typing import Literal

RESIZE_TO_CROP = 0.875
"""What evaluations show of the shorter side where training crops are resized: 224 of 256 pixels (Krizhevsky, 2012)."""
DECODERS = {
    "ffcv": "fastarat.data.loading.decoders.ffcv:FFCVDecoder",
    "dali": "fastarat.data.loading.decoders.dali:DALIDecoder",
    "plain": "fastarat.data.loading.decoders.plain:PlainDecoder",
}
"""What decodes images that do not stay on the device, by the name that `--loader` gives it: a line each. `auto` takes
the first that is made for the data; nothing is imported before."""


@dataclass(frozen=True)
class AugmentConfig:
    """Random crops and flips, functions of (seed, epoch, image)."""

    crop_padding: int = 4
    """padded: zero pixels added on each side; 0 for no crop"""
    flip: bool = True
    """mirror every second image, at random"""
    crop: Literal["padded", "resized"] = "padded"
    """a crop of the image's size out of its zero-padded self; or a part of random area and shape, resized to `size`"""
    scale: tuple[float, float] = (0.08, 1.0)
    """resized: least and largest share of the image's area"""
    start_size: int | None = None
    """resized: smaller images at the start, of this many pixels, growing to `size` (progressive resolution)"""
    growth: float = 0.65
    """share of the epochs over which they grow, in steps of 32 pixels"""

    @property
    def central_share(self) -> float:
        """How much of an image's shorter side evaluations show."""
        return RESIZE_TO_CROP if self.crop == "resized" else 1.0

    def size_in(self, epoch: int, num_epochs: int, size: int) -> int:
        """Pixels of a side in `epoch` (from 1): a straight line from `start_size` to `size`, in steps of 32."""
        if self.start_size is None:
            return size
        done = min((epoch - 1) / max(self.growth * num_epochs, 1e-9), 1.0)
        return min(self.start_size + int(done * (size - self.start_size)) // 32 * 32, size) if done < 1 else size

    def problems(self) -> list[str]:
        """Everything wrong with these settings, each a sentence that names the fix."""
        found = []
        if not 0 <= self.crop_padding <= 64:
            found.append(f"augment crop_padding is {self.crop_padding}: give 0 to 64 pixels")
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] <= 1:
            found.append(f"augment scale is {self.scale}: give two rising shares of the area in (0, 1]")
        if not 0 < self.growth <= 1:
            found.append(f"augment growth is {self.growth}: give a share of the epochs in (0, 1]")
        if self.start_size is not None and (self.crop != "resized" or self.start_size < 32):
            found.append(
                f"augment start_size is {self.start_size}: give 32 or more pixels, and --augment.crop resized with it"
            )
        return found


@dataclass(frozen=True)
class LoadingConfig:
    """How images that do not stay on the device are read."""

    workers: int = 0
    """threads (plain: processes) that decode, in each training process; 0: the cores, divided among the processes"""
    order: Literal["random", "quasi-random"] = "random"
    """quasi-random: images near to each other in the files come near to each other, for disks that are slow to seek"""
    corrupt: Literal["fatal", "skip"] = "fatal"
    """an image that cannot be decoded ends the run before it starts, or is named and left out"""
    decode: Literal["cpu", "gpu"] = "cpu"
    """dali: where JPEGs are decoded"""

    def problems(self) -> list[str]:
        """Everything wrong with these settings, each a sentence that names the fix."""
        return [] if 0 <= self.workers <= 256 else [f"loading workers is {self.workers}: give 0 to 256"]


@dataclass(frozen=True)
class ExtraConfig:
    """Images to train on in addition to the training set's own, for instance synthetic ones (Rebuffi et al., 2021)."""

    data: str | None = None
    """a data set whose training images are the extra ones, of the same classes and size; None: no extra images"""
    ratio: float = 0.5
    """their share of every batch; an epoch is as many images as without them"""

    def problems(self) -> list[str]:
        """Everything wrong with these settings, each a sentence that names the fix."""
        if not 0 < self.ratio < 1:
            return [f"extra ratio is {self.ratio}: give a share of every batch in (0, 1)"]
        if self.data is None and self.ratio != ExtraConfig.ratio:
            return [f"extra ratio is {self.ratio}, and there are no extra images: give --extra.data too"]
        return []
