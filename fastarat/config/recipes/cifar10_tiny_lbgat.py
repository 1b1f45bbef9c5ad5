"""LBGAT with a small net on CIFAR-10.

    fastarat train cifar10-tiny-lbgat

Net, epochs, schedule and eps are those of `cifar10-tiny-at`; the teacher is a net of the same size, beta 0 and the
KL attack are its paper's.

About 15 minutes on 2 idle CPU cores, by the cost of a step. Not yet measured here.
"""

from dataclasses import replace

from fastarat.config.method import LBGATConfig
from fastarat.config.recipes.cifar10_tiny_at import RECIPE as AT

RECIPE = replace(AT, attack=replace(AT.attack, start="gaussian", objective="kl"), method=LBGATConfig(teacher="tiny"))
