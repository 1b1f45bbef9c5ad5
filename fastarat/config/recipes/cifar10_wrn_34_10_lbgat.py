"""LBGAT of a WRN-34-10 on CIFAR-10.

    fastarat train cifar10-wrn-34-10-lbgat

Its authors' settings: a ResNet-18 as teacher, beta 0 (as in the CIFAR-10 models they released), PGD-10 of 1.785/255
in a ball of 7.905/255 (0.007, 0.031); evaluated at 8/255.

Made for a GPU; 100 epochs. The AR-AT paper reports 88.19 % clean and 52.56 % AutoAttack for it (its published
code's own evaluation); not yet measured here.
"""

from dataclasses import replace

from fastarat.config.model import ModelConfig
from fastarat.config.recipes.cifar10_resnet18_lbgat import RECIPE as RESNET18

RECIPE = replace(RESNET18, model=ModelConfig("wrn-34-10"))
