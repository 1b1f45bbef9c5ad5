"""MART with a small net on CIFAR-10.

    fastarat train cifar10-tiny-mart

Net, epochs, schedule and eps are those of `cifar10-tiny-at`; beta 5 and the start of the attack are its paper's.

About 12 minutes on 2 idle CPU cores, by the cost of a step. Not yet measured here.
"""

from dataclasses import replace

from fastarat.config.method import MARTConfig
from fastarat.config.recipes.cifar10_tiny_at import RECIPE as AT

RECIPE = replace(AT, attack=replace(AT.attack, start="gaussian", batch_norm="eval"), method=MARTConfig())
