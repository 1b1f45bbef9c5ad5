"""How training images are augmented, and which images are trained on besides."""

from dataclasses import dataclass


@dataclass(frozen=True)
class AugmentConfig:
    """Random crops and flips, functions of (seed, epoch, image)."""

    crop_padding: int = 4
    """zero pixels added on each side before a random crop of the image's size; 0 for none"""
    flip: bool = True
    """mirror every second image, at random"""

    def problems(self) -> list[str]:
        """Everything wrong with these settings, each a sentence that names the fix."""
        fits = 0 <= self.crop_padding <= 64
        return [] if fits else [f"augment crop_padding is {self.crop_padding}: give 0 to 64 pixels"]


@dataclass(frozen=True)
class ExtraConfig:
    """Images to train on besides the training set's own, for instance synthetic ones (Rebuffi et al., 2021)."""

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
