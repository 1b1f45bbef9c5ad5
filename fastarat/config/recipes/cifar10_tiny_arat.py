"""AR-AT with a small net (three residual blocks of 16, 32, 64 channels) on CIFAR-10: made for CPUs.

    fastarat train cifar10-tiny-arat

About 12 minutes on 2 idle CPU cores, by its step rate.
Measured on cifar10-jpeg (one seed, eps 8/255): 58.8 % clean and 28.1 % PGD-20 accuracy on 2,000 test
images, 23.2 % AutoAttack accuracy on 500 of them. A second training of that seed gave
60.1 % and 27.5 %.
"""

from fastarat.config import Config
from fastarat.config.attack import AttackConfig
from fastarat.config.method import ARATConfig
from fastarat.config.model import ModelConfig
from fastarat.config.training import EvaluationConfig, ScheduleConfig

RECIPE = Config(
    data="cifar10",
    epochs=12,
    num_validation_images=1000,
    model=ModelConfig("tiny"),
    attack=AttackConfig(step_255=4, steps=3),
    method=ARATConfig(gamma=10),
    schedule=ScheduleConfig("cosine"),
    evaluation=EvaluationConfig(num_images=1000, steps=10),
)
