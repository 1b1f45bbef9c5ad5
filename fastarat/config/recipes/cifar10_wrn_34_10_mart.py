"""MART of a WRN-34-10 on CIFAR-10.

    fastarat train cifar10-wrn-34-10-mart

Its authors' settings: beta 6, PGD-10 of 1.785/255 in a ball of 7.905/255 (0.007, 0.031), 90 epochs; evaluated at
8/255.

Made for a GPU; 90 epochs. The AR-AT paper reports 86.10 % clean and 49.11 % AutoAttack for it (its published code's
own evaluation); not yet measured here.
"""

from dataclasses import replace

from fastarat.config.method import MARTConfig
from fastarat.config.recipes.cifar10_wrn_34_10_at import RECIPE as AT
from fastarat.config.training import OptimizerConfig, ScheduleConfig

RECIPE = replace(
    AT,
    epochs=90,
    attack=replace(AT.attack, eps_255=7.905, step_255=1.785, start="gaussian", batch_norm="eval"),
    method=MARTConfig(beta=6),
    optimizer=OptimizerConfig(weight_decay=7e-4),
    schedule=ScheduleConfig(milestones=(75, 90)),
    evaluation=replace(AT.evaluation, eps_255=8),
)
