"""AT with a small net on CIFAR-10, made for the time to robustness: `cifar10-tiny-at` in a fifth of its passes.

    fastarat train cifar10-tiny-at-fast

The same net, method and threat model. What differs: convolutions learn by Muon, at a rate that rises and falls in
straight lines; 4 epochs instead of 12; one attack step of 11/255 in a ball of 9/255 (FGSM-RS; Wong et al., 2020)
instead of three in one of 8/255, for which it is evaluated; no random crops, which a net of this size has no need of.
Found on validation images (`python -m bench.speedrun.tries`), one seed: 57.8 % clean and 31.4 % robust of 1,000.

Two to three minutes on 2 CPU cores, where `cifar10-tiny-at` in eager float32 takes 18 to 22. What it reaches on test
images is in the table of `bench/README.md`.
"""

from dataclasses import replace

from fastarat.config.data import AugmentConfig
from fastarat.config.recipes.cifar10_tiny_at import RECIPE as AT
from fastarat.config.training import OptimizerConfig, ScheduleConfig

RECIPE = replace(
    AT,
    epochs=4,
    attack=replace(AT.attack, eps_255=9, step_255=11, steps=1),
    augment=AugmentConfig(crop_padding=0),
    optimizer=OptimizerConfig(name="muon", learning_rate=0.2, muon_factor=0.2),
    schedule=ScheduleConfig("cyclic"),
    evaluation=replace(AT.evaluation, eps_255=8),
)
