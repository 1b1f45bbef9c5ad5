"""Classes are compared by their names; those in another order are brought to the one that is wanted."""

from dataclasses import replace

import numpy as np
import pytest

from fastarat.common.errors import UserError
from fastarat.data.images.classes import in_order_of, match_classes
from fastarat.data.images.dataset import Images, from_splits, other_images
from fastarat.data.images.stored import STORED
from tests.helpers.small_sets import encoded, jpeg

TWELVE = tuple(map(str, range(12)))
NO_NAMES = "by number, since {} has no names for them"


def matched(names: tuple[str, ...], wanted: tuple[str, ...]):
    return match_classes(names, wanted, "photos", "the run", "give its own --data")


@pytest.mark.parametrize(
    ("names", "wanted", "places", "how"),
    [
        (("ant", "bee"), ("ant", "bee"), [0, 1], ""),
        (("ant", "bee", "cat"), ("cat", "ant", "bee"), [1, 2, 0], "by name, since photos has them in another order"),
        (tuple(sorted(TWELVE)), TWELVE, [0, 1, 10, 11, *range(2, 10)], "('10' is class 2 there and 10 here)"),
        (("0", "1"), ("ant", "bee"), [0, 1], NO_NAMES.format("photos")),
        (("ant", "bee"), ("0", "1"), [0, 1], NO_NAMES.format("the run")),
    ],
)
def test_names_say_which_class_is_which_and_numbers_where_one_side_has_no_names(names, wanted, places, how):
    match = matched(names, wanted)
    assert match.places.tolist() == places and how in match.how and bool(match.how) == bool(how)
    assert match.names == (names if wanted == ("0", "1") else wanted)


@pytest.mark.parametrize(
    ("names", "wanted", "says"),
    [
        (("ant", "wasp"), ("ant", "bee"), "'wasp' is in photos alone and 'bee' is in the run alone; give its own"),
        (("bee", "Ant"), ("ant", "bee"), "which are the same but for case and spaces"),
        (("ant ", "bee"), ("ant", "bee"), "which are the same but for case and spaces"),
        (("ant", "bee"), ("ant", "bee", "cat"), r"2 and not 3 \(ant, bee; ant, bee, cat\)"),
        (("0", "1"), ("0", "1", "2"), "2 and not 3"),
        (("1", "2"), ("0", "1"), "'2' is in photos alone and '0' is in the run alone"),
        (("crane", "ant", "crane"), ("ant", "crane", "crane"), "in another order, and 'crane' is the name of two"),
    ],
)
def test_other_names_are_refused_with_the_first_that_differ(names, wanted, says):
    with pytest.raises(UserError, match=f"photos has other classes than the run: .*{says}") as refused:
        matched(names, wanted)
    assert "give its own --data" in str(refused.value)


def test_two_classes_of_one_name_are_themselves_where_the_order_is_the_same():
    assert matched(("crane", "crane"), ("crane", "crane")).how == ""


def test_a_set_in_another_order_becomes_the_one_that_was_wanted():
    images = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)
    labels = np.array([0, 1, 2, 2, 1, 0])
    own = from_splits("own", Images(images, labels), Images(images[:3], labels[:3]), ("ant", "bee", "cat"), 255)
    other = np.array([2, 0, 1])[labels]
    permuted = from_splits("p", Images(images, other), Images(images[:3], other[:3]), ("bee", "cat", "ant"), 255)
    found = in_order_of(permuted, own.classes, "own", "")
    assert found.classes == own.classes and found.matched.startswith("by name")
    assert found.train.labels.tolist() == own.train.labels.tolist()
    assert found.test.labels.tolist() == own.test.labels.tolist()
    assert not other_images(found, own.fingerprint, own.labels_fingerprint)
    assert in_order_of(own, own.classes, "own", "") == own


def test_images_as_they_are_stored_are_mapped_too_and_are_no_others_than_those_they_were(tmp_path):
    train = encoded(tmp_path, {f"{i}.jpg": jpeg(i) for i in range(3)})
    test = Images(np.zeros((2, 4, 4, 3), np.uint8), np.array([2, 0]))
    own = replace(from_splits("own", test, test, ("ant", "bee", "cat"), 255), train=train, fingerprint=f"{STORED}0")
    found = in_order_of(own, ("cat", "ant", "bee"), "a run", "")
    assert found.train.labels.tolist() == [1, 2, 0] and found.test.labels.tolist() == [0, 1]
    assert found.fingerprint.startswith(STORED) and found.fingerprint != own.fingerprint
