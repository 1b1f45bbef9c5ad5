"""AR-AT of a ResNet-18 on CIFAR-10, as the AR-AT paper trains it.

    fastarat train cifar10-resnet18-arat

Made for a GPU; 100 epochs. The paper reports 87.82 % clean and 49.02 % AutoAttack
(its published code's own evaluation); not yet measured here.
"""

from fastarat.config import Config
from fastarat.config.training import EvaluationConfig

# Every default of `Config` is the paper's recipe for this net. A GPU has the time to watch all test images.
RECIPE = Config(evaluation=EvaluationConfig(num_clean_images=10_000))
