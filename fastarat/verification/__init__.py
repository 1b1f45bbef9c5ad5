"""This installation against stored results: golden vectors of AR-AT, and kits of AutoAttack's."""

from typing import Literal, get_args

PartName = Literal["units", "nets", "pgd", "traces", "attacks"]
PARTS: tuple[PartName, ...] = get_args(PartName)
"""what a kit is made of, in the order in which it is verified: all that is quick first"""
