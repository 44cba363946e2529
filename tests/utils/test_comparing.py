"""What two networks make of one picture."""

import numpy as np
import pytest

from utils.comparing import (
    HIGHLIGHT,
    difference_map,
    disagreement,
    largest_shares,
    largest_swaps,
    reduced,
)

STREET, TOWN = ("sky", "road", "tree"), ("Road", "building", "sky ", "tree")


def test_classes_are_compared_by_name_not_by_place():
    classes = np.array([[0, 1, 2], [0, 1, 2]], np.uint8)
    others = np.array([[2, 0, 3], [1, 1, 3]], np.uint8)
    differs = disagreement(classes, others, STREET, TOWN)
    assert differs.tolist() == [[False, False, False], [True, True, False]]
    assert not disagreement(classes, classes, STREET, STREET).any()
    assert disagreement(classes, classes, STREET, ("cat", "dog", "cow")).all()


def test_the_largest_swaps_come_first():
    classes = np.array([[0, 0, 0, 1, 1, 1, 2, 2]], np.uint8)
    others = np.array([[1, 2, 2, 1, 1, 1, 3, 3]], np.uint8)
    swaps = largest_swaps(classes, others, STREET, TOWN)
    assert [swap[:2] for swap in swaps] == [("road", "building"), ("sky", "building")]
    assert [swap.share for swap in swaps] == [3 / 8, 1 / 8]
    assert len(largest_swaps(classes, others, STREET, TOWN, most=1)) == 1
    assert largest_swaps(classes, classes, STREET, STREET) == []


@pytest.mark.parametrize("count", [256, 200])
def test_many_classes(count):
    """Pairs of 8-bit ids do not fit into 8 bits."""
    names = [f"class {n}" for n in range(count)]
    classes = np.full((4, 4), count - 1, np.uint8)
    (swap,) = largest_swaps(classes, classes - 1, names, names)
    assert swap == (names[-1], names[-2], 1.0)


def test_the_difference_is_where_they_differ():
    image = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    differs = np.zeros((4, 6), bool)
    differs[1, 2] = True
    shown = difference_map(image, differs)
    assert shown[1, 2].tolist() == list(HIGHLIGHT)
    rest = shown[~differs]
    assert (rest == rest[:, :1]).all() and len(np.unique(rest)) > 5  # gray, and still a picture


def test_shares_are_sorted_and_keep_their_colours():
    palette = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], np.uint8)
    rows = largest_shares({"sky": 0.25, "road": 0.75, "tree": 0.0}, palette)
    assert rows == [("road", (4, 5, 6), 0.75), ("sky", (1, 2, 3), 0.25)]


@pytest.mark.parametrize("size", [(300, 500), (1, 100_000), (3000, 20)])
def test_large_pictures_become_smaller(size):
    image = np.zeros((*size, 3), np.uint8)
    small = reduced(image, 10_000, 1000)
    assert 0 < small.shape[0] * small.shape[1] <= 10_000 and max(small.shape) <= 1000
    assert reduced(image, 1 << 20, 100_000) is image
