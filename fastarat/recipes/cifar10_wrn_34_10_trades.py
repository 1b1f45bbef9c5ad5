"""TRADES of a WRN-34-10 on CIFAR-10.

    fastarat train cifar10-wrn-34-10-trades

Its authors' settings: beta 6, PGD-10 of 1.785/255 in a ball of 7.905/255 (0.007, 0.031), 76 epochs with one drop;
evaluated at 8/255.

Made for a GPU; 76 epochs. The AR-AT paper reports 84.33 % clean and 51.75 % AutoAttack for it (its published code's
own evaluation); not yet measured here.
"""

from dataclasses import replace

from fastarat.engine.settings import OptimizerConfig, ScheduleConfig
from fastarat.methods.settings import TRADESConfig
from fastarat.recipes.cifar10_wrn_34_10_at import RECIPE as AT

RECIPE = replace(
    AT,
    recipe="cifar10-wrn-34-10-trades",
    epochs=76,
    attack=replace(AT.attack, eps_255=7.905, step_255=1.785, start="gaussian", batch_norm="eval", objective="kl"),
    method=TRADESConfig(),
    optimizer=OptimizerConfig(weight_decay=2e-4),
    schedule=ScheduleConfig(milestones=(75,)),
    evaluation=replace(AT.evaluation, eps_255=8),
)
