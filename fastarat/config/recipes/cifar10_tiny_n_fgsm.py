"""N-FGSM with a small net on CIFAR-10.

    fastarat train cifar10-tiny-n-fgsm

Net, epochs, schedule and eps are those of `cifar10-tiny-at`; the attack is one step of eps from a start of twice
that, not put back into the ball (de Jorge et al., 2022).

About 4 minutes on 2 idle CPU cores, by the cost of a step. Not yet measured here.
"""

from dataclasses import replace

from fastarat.config.recipes.cifar10_tiny_at import RECIPE as AT

RECIPE = replace(AT, attack=replace(AT.attack, steps=1, step_255=8, start_scale=2, project=False))
