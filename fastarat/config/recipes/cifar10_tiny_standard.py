"""Standard training with a small net on CIFAR-10.

    fastarat train cifar10-tiny-standard

Net, epochs, schedule and eps are those of `cifar10-tiny-at`. No attack: the baseline of clean accuracy, and the
teacher that ARREST starts from.

About 2 minutes on 2 idle CPU cores, by the cost of a step. Not yet measured here.
"""

from dataclasses import replace

from fastarat.config.method import StandardConfig
from fastarat.config.recipes.cifar10_tiny_at import RECIPE as AT

RECIPE = replace(AT, attack=replace(AT.attack, steps=0, start="none"), method=StandardConfig())
