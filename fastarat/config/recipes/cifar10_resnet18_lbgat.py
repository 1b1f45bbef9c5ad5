"""LBGAT of a ResNet-18 on CIFAR-10.

    fastarat train cifar10-resnet18-lbgat

Its authors' settings: a ResNet-18 as teacher, beta 0 (as in the CIFAR-10 models they released), PGD-10 of 1.785/255
in a ball of 7.905/255 (0.007, 0.031); evaluated at 8/255.

Made for a GPU; 100 epochs. The AR-AT paper reports 85.00 % clean and 48.85 % AutoAttack for it (its published
code's own evaluation); not yet measured here.
"""

from dataclasses import replace

from fastarat.config.method import LBGATConfig
from fastarat.config.recipes.cifar10_resnet18_at import RECIPE as AT
from fastarat.config.training import OptimizerConfig, ScheduleConfig

RECIPE = replace(
    AT,
    attack=replace(AT.attack, eps_255=7.905, step_255=1.785, start="gaussian", objective="kl"),
    method=LBGATConfig(),
    optimizer=OptimizerConfig(weight_decay=2e-4),
    schedule=ScheduleConfig(warmup_epochs=1, warmup_factor=0.2),
    evaluation=replace(AT.evaluation, eps_255=8),
)
