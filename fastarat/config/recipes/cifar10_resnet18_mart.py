"""MART of a ResNet-18 on CIFAR-10.

    fastarat train cifar10-resnet18-mart

Its authors' settings: beta 5, PGD-10 of 1.785/255 in a ball of 7.905/255 (0.007, 0.031), 120 epochs; evaluated at
8/255.

Made for a GPU; 120 epochs. The AR-AT paper reports 82.15 % clean and 47.83 % AutoAttack for it (its published
code's own evaluation); not yet measured here.
"""

from dataclasses import replace

from fastarat.config.method import MARTConfig
from fastarat.config.recipes.cifar10_resnet18_at import RECIPE as AT
from fastarat.config.training import OptimizerConfig, ScheduleConfig

RECIPE = replace(
    AT,
    epochs=120,
    attack=replace(AT.attack, eps_255=7.905, step_255=1.785, start="gaussian", batch_norm="eval"),
    method=MARTConfig(),
    optimizer=OptimizerConfig(learning_rate=0.01, weight_decay=3.5e-3),
    schedule=ScheduleConfig(milestones=(75, 90, 100)),
    evaluation=replace(AT.evaluation, eps_255=8),
)
