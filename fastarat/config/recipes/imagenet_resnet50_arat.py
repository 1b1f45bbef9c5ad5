"""AR-AT of a ResNet-50 on ImageNet at 224 pixels.

    fastarat train imagenet-resnet50-arat --data PATH --gpus 8

Data: a folder with train/ and val/ of class folders, tar shards, or a .beton of either (`fastarat data build`).

PGD-3 in a ball of 4/255 with steps of two thirds of it, as robust ImageNet nets are usually trained (Salman et al.,
2020, whose AT gives 63.86 % clean accuracy); batch 512 with a rate of 0.1 for every 256 images, warm-up and drops as
in Goyal et al. (2017). The AR-AT paper has no ImageNet: gamma is that of its ResNet-18.
`--augment.start-size 128` begins with smaller images (progressive resolution), which costs less.

Made for eight GPUs; 90 epochs, each about four times the arithmetic of standard training. Not yet trained: time and
accuracy are not known.
"""

from fastarat.config import Config
from fastarat.config.attack import AttackConfig
from fastarat.config.data import AugmentConfig
from fastarat.config.model import ModelConfig
from fastarat.config.training import EvaluationConfig, OptimizerConfig, ScheduleConfig

RECIPE = Config(
    data="imagenet",
    size=224,
    epochs=90,
    batch=512,
    model=ModelConfig("resnet50"),
    attack=AttackConfig(eps_255=4, step_255=8 / 3, steps=3),
    augment=AugmentConfig(crop="resized"),
    optimizer=OptimizerConfig(learning_rate=0.2, weight_decay=1e-4),
    schedule=ScheduleConfig(milestones=(31, 61, 81), warmup_epochs=5),
    evaluation=EvaluationConfig(num_clean_images=10_000, batch=128),
)
