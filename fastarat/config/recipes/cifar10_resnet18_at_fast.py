"""AT of a ResNet-18 on CIFAR-10, made for the time to robustness: `cifar10-resnet18-at` in a twentieth of its passes.

    fastarat train cifar10-resnet18-at-fast

Not yet trained: no GPU has run it. The same net, method and threat model. What differs: convolutions learn by Muon, at
a rate that rises and falls in straight lines; 15 epochs instead of 100; two attack steps of 6/255 instead of ten of
2/255; crops move by two pixels instead of four. It is made of what carried on small nets: optimizer, rate and crops are
those of `cifar10-resnet18-w32-at`, two steps of 3/4 eps those of `digits-at-fast`; 15 epochs are those in which Wong et
al. (2020) train a net of this size (SGD, one attack step). None of it was tried on this net: `python -m
bench.speedrun.tries` does that on validation images.

Made for a GPU. `python -m bench.speedrun --suite cifar10-resnet18` races it against `cifar10-resnet18-at`.
"""

from dataclasses import replace

from fastarat.config.data import AugmentConfig
from fastarat.config.recipes.cifar10_resnet18_at import RECIPE as AT
from fastarat.config.training import OptimizerConfig, ScheduleConfig

RECIPE = replace(
    AT,
    epochs=15,
    attack=replace(AT.attack, steps=2, step_255=6),
    augment=AugmentConfig(crop_padding=2),
    optimizer=OptimizerConfig(name="muon", learning_rate=0.2, muon_factor=0.2),
    schedule=ScheduleConfig("cyclic"),
)
