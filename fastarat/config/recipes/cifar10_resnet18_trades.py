"""TRADES of a ResNet-18 on CIFAR-10.

    fastarat train cifar10-resnet18-trades

Its authors' settings: beta 6, PGD-10 of 1.785/255 in a ball of 7.905/255 (0.007, 0.031), 76 epochs with one drop;
evaluated at 8/255.

Made for a GPU; 76 epochs. The AR-AT paper reports 81.25 % clean and 48.54 % AutoAttack for it (its published code's
own evaluation); not yet measured here.
"""

from dataclasses import replace

from fastarat.config.method import TRADESConfig
from fastarat.config.recipes.cifar10_resnet18_at import RECIPE as AT
from fastarat.config.training import OptimizerConfig, ScheduleConfig

RECIPE = replace(
    AT,
    epochs=76,
    attack=replace(AT.attack, eps_255=7.905, step_255=1.785, start="gaussian", batch_norm="eval", objective="kl"),
    method=TRADESConfig(),
    optimizer=OptimizerConfig(weight_decay=2e-4),
    schedule=ScheduleConfig(milestones=(75,)),
    evaluation=replace(AT.evaluation, eps_255=8),
)
