"""TRADES with a ResNet-18 of half the width on CIFAR-10.

    fastarat train cifar10-resnet18-w32-trades

Net, epochs, schedule, ball and attack steps are those of `cifar10-resnet18-w32-at`; beta is 6, and the attack raises
the KL from a Gaussian start on running statistics, as its authors' does. Not yet measured.
"""

from dataclasses import replace

from fastarat.config.method import TRADESConfig
from fastarat.config.recipes.cifar10_resnet18_w32_at import RECIPE as AT

RECIPE = replace(
    AT,
    attack=replace(AT.attack, start="gaussian", batch_norm="eval", objective="kl"),
    method=TRADESConfig(),
)
