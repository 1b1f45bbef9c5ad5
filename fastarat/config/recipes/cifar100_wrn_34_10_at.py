"""AT of a WRN-34-10 on CIFAR-100, as the AR-AT paper trains it.

    fastarat train cifar100-wrn-34-10-at

Made for a GPU; 100 epochs. The paper reports 59.83 % clean and 23.94 % AutoAttack
(its published code's own evaluation); not yet measured here.
"""

from dataclasses import replace

from fastarat.config.method import ATConfig
from fastarat.config.recipes.cifar100_wrn_34_10_arat import RECIPE as ARAT

RECIPE = replace(ARAT, method=ATConfig())
