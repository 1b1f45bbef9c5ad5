"""Attacks by their names: one line each."""

from fastarat.attacks.apgd import APGD_CE, APGD_T
from fastarat.attacks.attack import Attack
from fastarat.attacks.every_iterate import CW, PGD
from fastarat.attacks.fab import FAB_T
from fastarat.attacks.square import SQUARE

ATTACKS: dict[str, Attack] = {
    "apgd-ce": APGD_CE,
    "apgd-t": APGD_T,
    "fab-t": FAB_T,
    "square": SQUARE,
    "pgd": PGD,
    "cw": CW,
}
