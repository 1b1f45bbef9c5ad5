"""Standard training of a WRN-34-10 on CIFAR-10.

    fastarat train cifar10-wrn-34-10-standard

No attack: the baseline of clean accuracy, and the teacher that ARREST starts from.

Made for a GPU; 100 epochs. Not yet measured here.
"""

from dataclasses import replace

from fastarat.config.method import StandardConfig
from fastarat.config.recipes.cifar10_wrn_34_10_at import RECIPE as AT

RECIPE = replace(AT, attack=replace(AT.attack, steps=0, start="none"), method=StandardConfig())
