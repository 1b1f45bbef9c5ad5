"""AR-AT with a ResNet-18 of half the width on CIFAR-10: the smallest net here with capacity to spare, for patient CPUs.

    fastarat train cifar10-resnet18-w32-arat --data cifar10-jpeg

2.8 million parameters, 0.28 GFLOP an image. 16 epochs, a rate that rises and falls in straight lines, and five attack
steps: hours on a few CPU cores. Not yet measured here; gamma is the paper's for a whole ResNet-18.
"""

from fastarat.config import Config
from fastarat.config.attack import AttackConfig
from fastarat.config.model import ModelConfig
from fastarat.config.training import EvaluationConfig, OptimizerConfig, ScheduleConfig

RECIPE = Config(
    epochs=16,
    num_validation_images=1000,
    model=ModelConfig("resnet18-w32"),
    attack=AttackConfig(steps=5),
    optimizer=OptimizerConfig(learning_rate=0.2),
    schedule=ScheduleConfig("cyclic"),
    evaluation=EvaluationConfig(every_epochs=4, num_images=1000),
)
