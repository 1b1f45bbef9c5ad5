"""AR-AT with stochastic weight averaging of a WRN-34-10 on CIFAR-10, as the AR-AT paper trains it.

    fastarat train cifar10-wrn-34-10-arat-swa

Made for a GPU; 100 epochs. The paper reports 90.06 % clean and 54.03 % AutoAttack
(its published code's own evaluation); not yet measured here.
"""

from dataclasses import replace

from fastarat.config.recipes.cifar10_wrn_34_10_arat import RECIPE as ARAT
from fastarat.config.training import AveragingConfig

RECIPE = replace(ARAT, averaging=AveragingConfig("swa", start_epoch=76, every_steps=500))
