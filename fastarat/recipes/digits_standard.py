"""Standard training on scikit-learn's digits.

    fastarat train digits-standard

Net, epochs, schedule and eps are those of `digits-at`. No attack: the baseline of clean accuracy, and the teacher
that ARREST starts from.

About ten seconds on 2 CPU cores. Not yet measured here.
"""

from dataclasses import replace

from fastarat.methods.settings import StandardConfig
from fastarat.recipes.digits_at import RECIPE as AT

RECIPE = replace(
    AT, recipe="digits-standard", attack=replace(AT.attack, steps=0, start="none"), method=StandardConfig()
)
