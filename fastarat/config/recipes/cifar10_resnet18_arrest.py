"""ARREST (unofficial) of a ResNet-18 on CIFAR-10.

    fastarat train cifar10-resnet18-standard --out runs/standard
    fastarat train cifar10-resnet18-arrest --method.teacher runs/standard

No code was released: the weights of its terms are this package's choice, the schedule is AT's.

Made for a GPU; 100 epochs. The AR-AT paper reports 86.63 % clean and 46.14 % AutoAttack for it (its published
code's own evaluation); not yet measured here.
"""

from dataclasses import replace

from fastarat.config.method import ARRESTConfig
from fastarat.config.recipes.cifar10_resnet18_at import RECIPE as AT

RECIPE = replace(AT, method=ARRESTConfig())
