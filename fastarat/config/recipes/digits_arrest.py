"""ARREST (unofficial) on scikit-learn's digits.

    fastarat train digits-standard --out runs/standard
    fastarat train digits-arrest --method.teacher runs/standard

Net, epochs, schedule and eps are those of `digits-at`. No code was released: the weights of its terms are this
package's choice.

A little over a minute on 2 CPU cores, and seconds for the teacher.
Measured over three seeds, at eps 0.18 (45.9/255): 99.1 ± 0.2 % clean,
79.5 ± 1.6 % PGD-20 and, of 200 test images, 74.3 ± 1.0 % AutoAttack accuracy.
"""

from dataclasses import replace

from fastarat.config.method import ARRESTConfig
from fastarat.config.recipes.digits_at import RECIPE as AT

RECIPE = replace(AT, method=ARRESTConfig(noise_255=45.9))
