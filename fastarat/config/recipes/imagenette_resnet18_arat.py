"""AR-AT of a ResNet-18 on Imagenette (ten classes of ImageNet) at 128 pixels.

    fastarat train imagenette-resnet18-arat --data imagenette2-320

Data: fast.ai's archive, unpacked: a folder with train/ and val/ of class folders, 9,469 and 3,925 images. What lies
beside them, such as noisy_imagenette.csv, has to be removed.
A .beton of it (`fastarat data build`) is read fastest.

Radius 4/255, which is usual for ImageNet's classes (RobustBench), and PGD-10 whose step is a quarter of it, as in the
CIFAR-10 recipes. Crops keep 35 % of the area or more, since the images are few. The AR-AT paper trains on Imagenette at
160 pixels: this is not its setting.

Made for a GPU; 100 epochs. Not yet trained: time and accuracy are not known.
"""

from fastarat.config import Config
from fastarat.config.attack import AttackConfig
from fastarat.config.data import AugmentConfig
from fastarat.config.model import ModelConfig
from fastarat.config.training import EvaluationConfig

RECIPE = Config(
    data="imagenette",
    size=128,
    model=ModelConfig("resnet18-imagenet"),
    attack=AttackConfig(eps_255=4),
    augment=AugmentConfig(crop="resized", scale=(0.35, 1.0)),
    evaluation=EvaluationConfig(num_clean_images=10_000, batch=250),
)
