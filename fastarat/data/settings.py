"""How training images are augmented."""

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
