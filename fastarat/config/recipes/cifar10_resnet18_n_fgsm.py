"""N-FGSM of a ResNet-18 on CIFAR-10.

    fastarat train cifar10-resnet18-n-fgsm

AT with one step of 8/255 from a start of twice that, not put back into the ball (de Jorge et al., 2022), on AT's
schedule.

Made for a GPU; 100 epochs. Not yet measured here.
"""

from dataclasses import replace

from fastarat.config.recipes.cifar10_resnet18_at import RECIPE as AT

RECIPE = replace(AT, attack=replace(AT.attack, steps=1, step_255=8, start_scale=2, project=False))
