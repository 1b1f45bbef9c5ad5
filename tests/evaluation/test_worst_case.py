"""Several evaluations of one net never say more together than any of them allows."""

import numpy as np
import pytest

from fastarat.config.evaluation import EvaluationSettings
from fastarat.evaluation.outcomes import described
from fastarat.evaluation.worst_case import worst_case
from tests.helpers.kept import outcomes_of


def evaluation(attack, num_images, broken, images="these", unsearched=(), warnings=()):
    """Of which the images at `broken` are not robust."""
    robust, blind = np.ones(num_images, bool), np.zeros(num_images, bool)
    robust[list(broken)], blind[list(unsearched)] = False, True
    flags = {"clean": np.ones(num_images, bool), attack: robust}
    settings = described(EvaluationSettings(attack))
    return outcomes_of(flags, settings, images=images, unsearched=blind, warnings=warnings)


def counted(*found):
    return worst_case(sorted(found, key=lambda outcomes: outcomes.strength, reverse=True))


def test_of_the_same_images_one_counts_that_all_attacks_leave():
    found = counted(evaluation("pgd", 200, range(30, 50)), evaluation("apgd-t", 200, range(40)))
    assert found and found.name == "apgd-t and PGD-20" and found.robust.sum() == 150
    assert found.per_class(list(found.flags)[-1]) == [75.0] * 10
    found = counted(evaluation("pgd", 200, range(20)), evaluation("apgd-t", 200, range(40)))
    assert found and found.name == "apgd-t" and found.robust.sum() == 160


@pytest.mark.parametrize(
    ("num_images", "broken", "name"),
    [
        (1000, 500, "PGD-20"),  # less than the strongest attack leaves of a part of the images
        (1000, 300, "AutoAttack"),
        (100, 60, "AutoAttack"),  # of fewer images it is chance
        (200, 81, "PGD-20"),
        (200, 80, "AutoAttack"),
    ],
)
def test_a_weaker_attack_counts_where_it_leaves_less_of_as_many_images_or_more(num_images, broken, name):
    strongest = evaluation("autoattack", 200, range(80))
    found = counted(strongest, evaluation("pgd", num_images, range(broken), images="others"))
    assert found and found.name == name


def test_what_one_evaluation_searched_is_searched_and_both_are_named():
    blind = evaluation("pgd", 200, range(50), unsearched=range(100, 200), warnings=("No attack could search.",))
    square = evaluation("square", 200, range(10), unsearched=[199], warnings=("It gained.",))
    found = counted(square, blind)
    assert found and found.name == "PGD-20 and square" and found.num_unsearched == 1
    assert found.warnings == ("No attack could search.", "square: It gained.")


def test_nothing_says_nothing():
    assert worst_case([]) is None
