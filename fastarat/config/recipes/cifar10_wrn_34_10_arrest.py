"""ARREST (unofficial) of a WRN-34-10 on CIFAR-10.

    fastarat train cifar10-wrn-34-10-standard --out runs/standard
    fastarat train cifar10-wrn-34-10-arrest --method.teacher runs/standard

No code was released: the weights of its terms are this package's choice, the schedule is AT's.

Made for a GPU; 100 epochs. The AR-AT paper reports 90.24 % clean and 50.20 % AutoAttack for it (its published
code's own evaluation); not yet measured here.
"""

from dataclasses import replace

from fastarat.config.method import ARRESTConfig
from fastarat.config.recipes.cifar10_wrn_34_10_at import RECIPE as AT

RECIPE = replace(AT, method=ARRESTConfig())
