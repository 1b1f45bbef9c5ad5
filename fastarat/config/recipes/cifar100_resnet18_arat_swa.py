"""AR-AT with stochastic weight averaging of a ResNet-18 on CIFAR-100, as the AR-AT paper trains it.

    fastarat train cifar100-resnet18-arat-swa

Made for a GPU; 100 epochs. The paper reports 67.17 % clean and 24.36 % AutoAttack
(its published code's own evaluation); not yet measured here.
"""

from dataclasses import replace

from fastarat.config.recipes.cifar100_resnet18_arat import RECIPE as ARAT
from fastarat.config.training import AveragingConfig

RECIPE = replace(ARAT, averaging=AveragingConfig("swa", start_epoch=76, every_steps=500))
