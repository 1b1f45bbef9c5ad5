"""AT with a small net on CIFAR-10: the plain twin of `cifar10-tiny-arat`.

    fastarat train cifar10-tiny-at

About 9 minutes on 2 idle CPU cores, by its step rate.
Measured on cifar10-jpeg (one seed, eps 8/255): 54.9 % clean and 31.8 % PGD-20 accuracy on 2,000 test
images, 29.4 % AutoAttack accuracy on 500 of them.
"""

from dataclasses import replace

from fastarat.config.method import ATConfig
from fastarat.config.recipes.cifar10_tiny_arat import RECIPE as ARAT

RECIPE = replace(ARAT, method=ATConfig())
