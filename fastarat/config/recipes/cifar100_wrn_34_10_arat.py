"""AR-AT of a WRN-34-10 on CIFAR-100, as the AR-AT paper trains it.

    fastarat train cifar100-wrn-34-10-arat

Made for a GPU; 100 epochs. The paper reports 72.51 % clean and 24.18 % AutoAttack
(its published code's own evaluation); not yet measured here.
"""

from dataclasses import replace

from fastarat.config.recipes.cifar10_wrn_34_10_arat import RECIPE as CIFAR10

RECIPE = replace(CIFAR10, data="cifar100")
