"""AR-AT with stochastic weight averaging of a WRN-34-10 on CIFAR-100, as the AR-AT paper trains it.

    fastarat train cifar100-wrn-34-10-arat-swa

Made for a GPU; 100 epochs. The paper reports 72.37 % clean and 27.31 % AutoAttack
(its published code's own evaluation); not yet measured here.
"""

from dataclasses import replace

from fastarat.config.recipes.cifar100_wrn_34_10_arat import RECIPE as ARAT
from fastarat.config.training import AveragingConfig

RECIPE = replace(ARAT, averaging=AveragingConfig("swa", start_epoch=76, every_steps=500))
