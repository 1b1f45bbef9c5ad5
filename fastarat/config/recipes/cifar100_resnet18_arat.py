"""AR-AT of a ResNet-18 on CIFAR-100, as the AR-AT paper trains it.

    fastarat train cifar100-resnet18-arat

Made for a GPU; 100 epochs. The paper reports 67.51 % clean and 23.38 % AutoAttack
(its published code's own evaluation); not yet measured here.
"""

from dataclasses import replace

from fastarat.config.recipes.cifar10_resnet18_arat import RECIPE as CIFAR10

RECIPE = replace(CIFAR10, data="cifar100")
