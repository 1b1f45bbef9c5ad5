"""FGSM-RS of a ResNet-18 on CIFAR-10.

    fastarat train cifar10-resnet18-fgsm-rs

AT with one step of 10/255 from a random start (Wong et al., 2020), on AT's schedule.

Made for a GPU; 100 epochs. Not yet measured here.
"""

from dataclasses import replace

from fastarat.config.recipes.cifar10_resnet18_at import RECIPE as AT

RECIPE = replace(AT, attack=replace(AT.attack, steps=1, step_255=10))
