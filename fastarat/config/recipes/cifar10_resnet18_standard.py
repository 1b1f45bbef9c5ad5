"""Standard training of a ResNet-18 on CIFAR-10.

    fastarat train cifar10-resnet18-standard

No attack: the baseline of clean accuracy, and the teacher that ARREST starts from.

Made for a GPU; 100 epochs. Not yet measured here.
"""

from dataclasses import replace

from fastarat.config.method import StandardConfig
from fastarat.config.recipes.cifar10_resnet18_at import RECIPE as AT

RECIPE = replace(AT, attack=replace(AT.attack, steps=0, start="none"), method=StandardConfig())
