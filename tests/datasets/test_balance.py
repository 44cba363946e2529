"""Pixels per class, and the weights that follow from them."""

import math

import cv2
import numpy as np
import pytest

from datasets import DataError, count_pixels, enet_weights, fingerprint
from datasets.synthetic import SyntheticScenes


def loops(dataset):
    """Pixel by pixel."""
    counts = [0] * dataset.meta.num_classes
    for index in range(len(dataset)):
        for value in dataset.load(index).label.ravel().tolist():
            if value != dataset.meta.ignore_label:
                counts[value] += 1
    return counts


@pytest.mark.parametrize("workers", [0, 3])
def test_every_labelled_pixel_is_counted_once(open_dataset, workers):
    for dataset in (open_dataset(), SyntheticScenes(3, 6, (48, 64))):
        assert count_pixels(dataset, workers) == loops(dataset)


def test_lines_that_stand_twice_count_twice(open_dataset, folder):
    once = count_pixels(open_dataset())
    listed = folder / "list/train.lst"
    listed.write_text(2 * listed.read_text())
    assert count_pixels(open_dataset(repeats=True)) == [2 * count for count in once]


@pytest.mark.parametrize("pixels", [[0, 10, 90], [5, 5, 5], [1, 0, 10**9], [7]], ids=str)
def test_weights_are_those_of_enet_and_one_on_average(pixels):
    weights, total = enet_weights(pixels), sum(pixels)
    expected = [1 / math.log(1.1 + count / total) for count in pixels]
    ratios = [weight / weights[0] for weight in weights]
    assert ratios == pytest.approx([value / expected[0] for value in expected])
    mean = sum(w * count for w, count in zip(weights, pixels, strict=True)) / total
    assert mean == pytest.approx(1)


def test_without_a_labelled_pixel_all_weigh_the_same():
    assert enet_weights([0, 0]) == (1.0, 1.0)


def test_unreadable_labels_stop_or_count_nothing(open_dataset):
    dataset = open_dataset()
    first, *rest = ([(dataset.label(i) == c).sum() for c in range(11)] for i in range(3))
    (dataset.folder / dataset.entries[0].label).write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(DataError, match=r"train\.lst:1: labels/a\.png is a truncated PNG"):
        count_pixels(dataset)
    assert sum(first)
    assert count_pixels(open_dataset(skip_unreadable=True)) == np.sum(rest, 0).tolist()


def test_the_fingerprint_follows_the_files(open_dataset):
    dataset = open_dataset()
    before = fingerprint(dataset)
    assert fingerprint(open_dataset()) == before
    path = dataset.folder / dataset.entries[1].label
    label = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    cv2.imwrite(str(path), np.vstack([label, label]))
    assert fingerprint(open_dataset()) != before


def test_the_fingerprint_of_drawn_scenes_knows_their_size():
    prints = {
        fingerprint(SyntheticScenes(*s)) for s in ((0, 2, (48, 64)), (0, 2, (64, 64)), (0, 3))
    }
    assert len(prints) == 3
