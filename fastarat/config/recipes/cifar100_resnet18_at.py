"""AT of a ResNet-18 on CIFAR-100, as the AR-AT paper trains it.

    fastarat train cifar100-resnet18-at

Made for a GPU; 100 epochs. The paper reports 55.82 % clean and 19.50 % AutoAttack
(its published code's own evaluation); not yet measured here.
"""

from dataclasses import replace

from fastarat.config.method import ATConfig
from fastarat.config.recipes.cifar100_resnet18_arat import RECIPE as ARAT

RECIPE = replace(ARAT, method=ATConfig())
