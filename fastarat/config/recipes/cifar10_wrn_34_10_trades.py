"""TRADES of a WRN-34-10 on CIFAR-10.

    fastarat train cifar10-wrn-34-10-trades

Its authors' settings: beta 6, PGD-10 of 1.785/255 in a ball of 7.905/255 (0.007, 0.031), 76 epochs with one drop;
evaluated at 8/255.

Made for a GPU; 76 epochs. The AR-AT paper reports 84.33 % clean and 51.75 % AutoAttack for it (its published code's
own evaluation); not yet measured here.
"""

from dataclasses import replace

from fastarat.config.model import ModelConfig
from fastarat.config.recipes.cifar10_resnet18_trades import RECIPE as RESNET18

RECIPE = replace(RESNET18, model=ModelConfig("wrn-34-10"))
