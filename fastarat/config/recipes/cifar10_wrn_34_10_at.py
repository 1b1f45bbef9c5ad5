"""AT of a WRN-34-10 on CIFAR-10, as the AR-AT paper trains it.

    fastarat train cifar10-wrn-34-10-at

Made for a GPU; 100 epochs. The paper reports 86.06 % clean and 46.26 % AutoAttack
(its published code's own evaluation); not yet measured here.
"""

from dataclasses import replace

from fastarat.config.method import ATConfig
from fastarat.config.recipes.cifar10_wrn_34_10_arat import RECIPE as ARAT

RECIPE = replace(ARAT, method=ATConfig())
