"""LBGAT on scikit-learn's digits.

    fastarat train digits-lbgat

Net, epochs, schedule and eps are those of `digits-at`; the teacher is a net of the same size, beta 0 and the KL
attack are its paper's.

About a minute and a half on 2 CPU cores. Not yet measured here.
"""

from dataclasses import replace

from fastarat.methods.settings import LBGATConfig
from fastarat.recipes.digits_at import RECIPE as AT

RECIPE = replace(
    AT,
    recipe="digits-lbgat",
    attack=replace(AT.attack, start="gaussian", objective="kl"),
    method=LBGATConfig(teacher="digits"),
)
