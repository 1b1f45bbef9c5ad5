"""TRADES with a small net on CIFAR-10.

    fastarat train cifar10-tiny-trades

Net, epochs, schedule and eps are those of `cifar10-tiny-at`; beta 6 and the KL attack are its paper's.

About 11 minutes on 2 idle CPU cores, by the cost of a step.
Measured on cifar10-jpeg (one seed, eps 8/255): 58.0 % clean and 30.4 % PGD-20 accuracy on 2,000 test
images, 27.8 % AutoAttack accuracy on 500 of them.
"""

from dataclasses import replace

from fastarat.config.method import TRADESConfig
from fastarat.config.recipes.cifar10_tiny_at import RECIPE as AT

RECIPE = replace(
    AT, attack=replace(AT.attack, start="gaussian", batch_norm="eval", objective="kl"), method=TRADESConfig()
)
