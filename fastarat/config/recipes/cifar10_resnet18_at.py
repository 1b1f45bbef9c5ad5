"""AT of a ResNet-18 on CIFAR-10, as the AR-AT paper trains it.

    fastarat train cifar10-resnet18-at

Made for a GPU; 100 epochs. The paper reports 83.77 % clean and 42.42 % AutoAttack
(its published code's own evaluation); not yet measured here.
"""

from dataclasses import replace

from fastarat.config.method import ATConfig
from fastarat.config.recipes.cifar10_resnet18_arat import RECIPE as ARAT

RECIPE = replace(ARAT, method=ATConfig())
