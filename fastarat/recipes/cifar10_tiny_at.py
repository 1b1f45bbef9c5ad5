"""AT with a small net on CIFAR-10: the plain twin of `cifar10-tiny-arat`.

fastarat train cifar10-tiny-at --data cifar10-jpeg
"""

from dataclasses import replace

from fastarat.methods.settings import ATConfig
from fastarat.recipes.cifar10_tiny_arat import RECIPE as ARAT

RECIPE = replace(ARAT, recipe="cifar10-tiny-at", method=ATConfig())
