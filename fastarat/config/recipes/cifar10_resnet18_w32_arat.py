"""AR-AT with a ResNet-18 of half the width on CIFAR-10: the smallest net here with capacity to spare, for patient CPUs.

    fastarat train cifar10-resnet18-w32-arat

2.8 million parameters, 0.28 GFLOP an image. 8 epochs with three attack steps; convolutions learn by Muon, at a rate
that rises and falls in straight lines, as in `cifar10-tiny-arat-fast`; crops move by two pixels; gamma is what
validation chose for the tiny net. One seed: 79.4 % clean and 47.8 % PGD-10 accuracy on 1,000 validation images, where
AT has 75.1 and 46.8 %.
"""

from fastarat.config import Config
from fastarat.config.attack import AttackConfig
from fastarat.config.data import AugmentConfig
from fastarat.config.method import ARATConfig
from fastarat.config.model import ModelConfig
from fastarat.config.training import EvaluationConfig, OptimizerConfig, ScheduleConfig

RECIPE = Config(
    epochs=8,
    num_validation_images=1000,
    model=ModelConfig("resnet18-w32"),
    method=ARATConfig(gamma=3),
    attack=AttackConfig(steps=3, step_255=4),
    augment=AugmentConfig(crop_padding=2),
    optimizer=OptimizerConfig(name="muon", learning_rate=0.2, muon_factor=0.2),
    schedule=ScheduleConfig("cyclic"),
    evaluation=EvaluationConfig(every_epochs=2, num_images=1000),
)
