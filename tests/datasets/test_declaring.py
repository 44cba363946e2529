"""Labels whose yaml file does not say what they are: what is told to declare."""

import re

import cv2
import numpy as np
import pytest
from pictures import check_list, quick, saved, write

from datasets import DataError, get_meta


@pytest.fixture
def declare(tmp_path):
    """ROOT with labels and a yaml file of the given content; returns the dataset."""

    def make(text: str, labels: list[np.ndarray]):
        (tmp_path / "plants.yaml").write_text(text)
        meta = get_meta(str(tmp_path / "plants.yaml"))
        write(tmp_path, meta, labels)
        return meta

    return make


def areas(*values: int) -> np.ndarray:
    """A band of six rows for each value."""
    return np.array(values, np.uint8).repeat(6)[:, None].repeat(20, 1)


THREE = "class_names: [soil, leaf, stem]\n"
TWO = "class_names: [soil, leaf]\n"
SEVEN = "class_names: [a, b, c, d, e, f, g]\n"
ONES = "encoding: {1: soil, 2: leaf, 3: stem}"
COUNTS = "its values seem to count from 1; declare"
BESIDE = "its classes seem to count from 1, with 0 for all else; declare"


@pytest.mark.parametrize(
    ("text", "label", "words"),
    [
        (THREE, areas(1, 2, 3), f"value 3 in .*; {COUNTS} {ONES} in "),
        (THREE, areas(1, 3), f"{COUNTS} {ONES} in "),
        (THREE, areas(1, 2, 3, 255), f"{COUNTS} {ONES} in "),
        (TWO, areas(1, 2), COUNTS + " encoding: {1: soil, 2: leaf} in "),
        (SEVEN, areas(1, 5, 7), COUNTS + " encoding: {1: a, 2: b, ..., 7: g} in "),
        (THREE, areas(0, 1, 2, 3), f"{BESIDE} {ONES} and ignored: .0. in .*, or give 0 a class"),
        (THREE, areas(0, 3, 255), f"{BESIDE} {ONES} and ignored: .0, 255. in "),
        (THREE, areas(1, 2, 4), "value 4 in .*; every value of the labels is declared in "),
        (THREE + "encoding: {1: soil, 2: leaf, 4: stem}\n", areas(1, 2, 3), "; every value of"),
        (TWO, areas(0, 255), "; a mask of 0 and 255 is declared as encoding: {0: soil, 255: leaf}"),
        (TWO, areas(0, 128), "; a mask of 0 and 128 is declared as encoding: {0: soil, 128: leaf}"),
    ],
)
def test_what_unknown_values_may_mean(declare, tmp_path, text, label, words):
    meta = declare(text, [label])
    with pytest.raises(DataError, match=words):
        quick(tmp_path, meta)
    (problem,) = check_list(tmp_path, "train.lst", meta).problems
    assert re.search(words, problem)


def test_what_is_told_to_declare_is_right(declare, tmp_path):
    label = areas(0, 1, 3)
    for more in ("ignored: [0]\n", ""):
        names = THREE if more else "class_names: [other, soil, leaf, stem]\n"
        text = names + (f"{ONES}\n{more}" if more else "")
        assert not any("count from" in remark for remark in quick(tmp_path, declare(text, [label])))


PICTURE = cv2.merge([areas(0, 9), areas(0, 50), areas(0, 90)])


@pytest.mark.parametrize("data", [saved(PICTURE, "PNG"), saved(np.dstack([PICTURE, areas(9, 9)]),
                                                               "PNG")])  # fmt: skip
def test_colours_where_values_are_declared(declare, tmp_path, data):
    meta = declare(THREE, [areas(0, 1)])
    (tmp_path / "labels/frame0.png").write_bytes(data)
    words = (
        r"where one channel of label values is expected; labels in colours are declared as encoding"
        rf": color, with their palette, in {tmp_path}/plants.yaml; if red, green and blue are alike"
        ", save one of them"
    )
    with pytest.raises(DataError, match=words):
        quick(tmp_path, meta)
    assert re.search(words, check_list(tmp_path, "train.lst", meta).problems[0])
    meta = declare(THREE + "palette: [[0, 0, 0], [9, 50, 90], [1, 2, 3]]\nencoding: color\n",
                   [areas(0, 1)])  # fmt: skip
    with pytest.raises(DataError, match=r"labels of values are declared as encoding: index, or"):
        quick(tmp_path, meta)
    (tmp_path / "labels/frame0.png").write_bytes(data)
    assert quick(tmp_path, meta) == []


def test_a_built_in_dataset_without_colours_says_so(tmp_path):
    meta = get_meta("cityscapes")
    write(tmp_path, meta, [PICTURE])
    with pytest.raises(
        DataError, match=r"; cityscapes is labelled by values only \(DATASET.LABELS"
    ):
        quick(tmp_path, meta)


@pytest.mark.parametrize(
    ("text", "label", "share", "value"),
    [
        (THREE, areas(0, 255), "50.0%", 255),
        (THREE, areas(0, 0, 0, 255), "25.0%", 255),
        (TWO + "ignored: [255]\n", areas(0, 255, 255), "66.7%", 255),
        (THREE + "ignored: others\n", areas(0, 0, 7, 128, 128), "40.0%", 128),
    ],
)
def test_masks_of_which_nothing_is_left_are_named(declare, tmp_path, text, label, share, value):
    meta = declare(text, [label, label])
    sentence = (
        f"{tmp_path}/train.lst: {share} of the label pixels are {value}, which is read as ignored, "
        f"and no pixel is of another class than soil: if {value} is a class, declare it in "
        f"{tmp_path}/plants.yaml with encoding: {{0: soil, {value}: leaf}}"
    )
    assert quick(tmp_path, meta) == [sentence]
    assert sentence in check_list(tmp_path, "train.lst", meta).notes


def test_labels_with_a_second_class_are_no_masks(declare, tmp_path):
    for labels in ([areas(0, 255), areas(0, 1)], [areas(0)], [areas(1, 255)]):
        assert quick(tmp_path, declare(THREE, labels)) == []
