"""AR-AT with a small net on CIFAR-10, made for the time to robustness: `cifar10-tiny-arat` in 32 passes of 144.

    fastarat train cifar10-tiny-arat-fast

The same net, method and threat model. Epochs, attack, optimizer and schedule are those of `cifar10-tiny-at-fast`, and
gamma is 3 instead of 10, by which more robustness stays. Found on validation images (`python -m bench.speedrun.tries`),
one seed: 62.4 % clean and 28.2 % robust of 1,000; with gamma 10 63.5 and 24.4 %, with gamma 1 59.2 and 28.7 %.

Four to five minutes on 2 CPU cores, where `cifar10-tiny-arat` in eager float32 takes 18. What it reaches on test
images is in the table of `bench/README.md`.
"""

from dataclasses import replace

from fastarat.config.method import ARATConfig
from fastarat.config.recipes.cifar10_tiny_at_fast import RECIPE as FAST

RECIPE = replace(FAST, method=ARATConfig(gamma=3))
