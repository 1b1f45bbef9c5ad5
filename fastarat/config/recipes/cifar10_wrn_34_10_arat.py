"""AR-AT of a WRN-34-10 on CIFAR-10, as the AR-AT paper trains it.

    fastarat train cifar10-wrn-34-10-arat

Made for a GPU; 100 epochs. The paper reports 90.89 % clean and 50.77 % AutoAttack
(its published code's own evaluation); not yet measured here.
"""

from dataclasses import replace

from fastarat.config.method import ARATConfig
from fastarat.config.model import ModelConfig
from fastarat.config.recipes.cifar10_resnet18_arat import RECIPE as RESNET18

RECIPE = replace(RESNET18, model=ModelConfig("wrn-34-10"), method=ARATConfig(gamma=100))
