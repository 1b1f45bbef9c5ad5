"""ARREST (unofficial) with a small net on CIFAR-10.

    fastarat train cifar10-tiny-standard --out runs/standard
    fastarat train cifar10-tiny-arrest --method.teacher runs/standard

Net, epochs, schedule and eps are those of `cifar10-tiny-at`. No code was released: the weights of its terms are
this package's choice.

About 10 minutes on 2 idle CPU cores, by the cost of a step, and 2 for the teacher. Not yet measured here.
"""

from dataclasses import replace

from fastarat.config.method import ARRESTConfig
from fastarat.config.recipes.cifar10_tiny_at import RECIPE as AT

RECIPE = replace(AT, method=ARRESTConfig())
