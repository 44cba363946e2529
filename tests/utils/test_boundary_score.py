"""The boundary F1 score against plain loops over all pairs of pixels."""

import math

import numpy as np
import pytest

from utils.boundary_score import BoundaryScore

IGNORE = 255


def outline(classes, label, index):
    """Pixels of class `index` beside another class, neither ignored in `label`, by loops."""
    rows, columns = classes.shape
    found = []
    for y in range(rows):
        for x in range(columns):
            if classes[y, x] != index or label[y, x] == IGNORE:
                continue
            for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                inside = 0 <= v < rows and 0 <= u < columns
                if inside and label[v, u] != IGNORE and classes[v, u] != index:
                    found.append((y, x))
                    break
    return found


def share_near(these, those, reach):
    if not these or not those:
        return 0.0
    return sum(min(math.dist(a, b) for b in those) <= reach for a in these) / len(these)


def plain(prediction, label, reach, classes):
    """Class -> (precision, recall, F1) of one image."""
    scores = {}
    for index in range(classes):
        real, found = outline(label, label, index), outline(prediction, label, index)
        if real or found:
            p, r = share_near(found, real, reach), share_near(real, found, reach)
            scores[index] = p, r, 2 * p * r / (p + r) if p + r else 0.0
    return scores


def pictures(seed, size=(24, 30), ignored=True):
    """A label of blocks, and the same moved and with noise."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 4, (4, 5), dtype=np.uint8)
    label = np.kron(blocks, np.ones((6, 6), np.uint8))
    prediction = np.roll(label, rng.integers(-2, 3, 2), (0, 1))
    prediction[rng.random(size) < 0.05] = 1
    if ignored:
        label[5:9, 8:20] = IGNORE
    return prediction, label


@pytest.mark.parametrize("tolerance", [0.0075, 0.04, 0.09])
def test_it_is_what_loops_over_all_pixels_give(tolerance):
    score, expected = BoundaryScore(5, tolerance=tolerance), {}
    for seed in range(4):
        prediction, label = pictures(seed)
        score.update(prediction, label)
        reach = max(1.0, tolerance * math.hypot(24, 30))
        for index, values in plain(prediction, label, reach, 5).items():
            expected.setdefault(index, []).append(values)
    found = score.per_class()
    for index in range(5):
        if index in expected:
            assert found[index] == pytest.approx(np.mean(expected[index], 0))
            assert score.images[index] == len(expected[index])
        else:
            assert np.isnan(found[index]).all()
    means = [np.mean([f for _, _, f in values]) for values in expected.values()]
    assert score.mean() == pytest.approx(np.mean(means)) and 0 < score.mean() < 1


def test_the_tolerance_decides_how_far_an_outline_may_lie():
    label = np.zeros((300, 400), np.uint8)  # 0.75 % of the diagonal are 3.75 pixels
    label[:, 200:] = 1
    for moved, expected in ((0, 1.0), (3, 1.0), (4, 0.0), (5, 0.0)):
        score = BoundaryScore(2)
        score.update(np.roll(label, moved, 1) & (np.arange(400) >= 100), label)
        assert score.mean() == expected
    record = score.to_dict()
    assert record["tolerance_of_diagonal"] == 0.0075 and record["classes"]["0"]["images"] == 1


def test_right_maps_score_one_and_what_is_ignored_nothing():
    prediction, label = pictures(7)
    score = BoundaryScore(4, ["a", "b", "c", "d"])
    score.update(np.where(label == IGNORE, prediction, label), label)
    assert score.mean() == 1.0 and "boundary_f1 100.00 (within 0.75 %" in score.summary()
    empty = BoundaryScore(4)
    empty.update(prediction, np.full_like(label, IGNORE))
    empty.update(np.full_like(label, 2), np.full_like(label, 2))  # no outline anywhere
    assert math.isnan(empty.mean()) and empty.to_dict()["mean_f1"] is None
    assert empty.summary().startswith("boundary_f1 - ")


def test_a_class_that_is_missed_or_invented_scores_nothing():
    label = np.zeros((40, 40), np.uint8)
    label[10:20, 10:20] = 1
    invented = np.zeros_like(label)
    invented[10:20, 10:20] = 2
    score = BoundaryScore(3)
    score.update(invented, label)
    assert score.per_class()[1:, 2].tolist() == [0.0, 0.0] and score.per_class()[0, 2] == 1.0
