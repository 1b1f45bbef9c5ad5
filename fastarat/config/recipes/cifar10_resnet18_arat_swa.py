"""AR-AT with stochastic weight averaging of a ResNet-18 on CIFAR-10, as the AR-AT paper trains it.

    fastarat train cifar10-resnet18-arat-swa

Made for a GPU; 100 epochs. The paper reports 86.44 % clean and 50.28 % AutoAttack
(its published code's own evaluation); not yet measured here.
"""

from dataclasses import replace

from fastarat.config.recipes.cifar10_resnet18_arat import RECIPE as ARAT
from fastarat.config.training import AveragingConfig

RECIPE = replace(ARAT, averaging=AveragingConfig("swa", start_epoch=76, every_steps=500))
