"""Labels that are read in another encoding than they were written in."""

import re

import numpy as np
import pytest
from pictures import check_list, quick, write

from datasets import DataError, get_meta
from datasets.cityscapes import LABEL_IDS
from datasets.prepare.convert import spelling_10k

# Street scenes: share of the pixels per train id, 255 for the rest.
STREET = {0: 37, 1: 6, 2: 22, 5: 2, 7: 1, 8: 13, 9: 1, 10: 3, 11: 1, 13: 7, 255: 7}
FOREST = {0: 25, 8: 55, 9: 10, 10: 5, 11: 5}
NAMES = ("{}.png", "{}_gtFine_labelTrainIds.png", "{}_trainIds.png", "{}_train_id.png",
         "{}-TrainID.png", "{}_trainid.png")  # fmt: skip


def draw(shares: dict[int, int], seed: int, size: tuple[int, int] = (20, 40)) -> np.ndarray:
    """A label with these shares of its values, each of them there."""
    rng = np.random.default_rng(seed)
    parts = np.array(list(shares.values()), float)
    label = rng.choice(list(shares), size, p=parts / parts.sum()).astype(np.uint8)
    label.flat[: len(shares)] = list(shares)
    return label


def assert_accepted(tmp_path, meta, encoding: str = "") -> None:
    """Neither check has anything to say about the encoding."""
    assert quick(tmp_path, meta, encoding) == []
    summary = check_list(tmp_path, "train.lst", meta, encoding)
    assert summary.problems == []
    assert [note for note in summary.notes if "no pixel of" not in note] == []


def assert_refused(tmp_path, meta, words: str) -> None:
    """Both checks refuse in one sentence, which holds `words`."""
    with pytest.raises(DataError) as error:
        quick(tmp_path, meta)
    summary = check_list(tmp_path, "train.lst", meta)
    for sentence in (str(error.value), summary.problems[-1]):
        assert words in sentence and "\n" not in sentence
        assert sentence.startswith(f"{tmp_path}/train.lst: ")


@pytest.mark.parametrize("rest", [True, False], ids=["with 255", "without 255"])
@pytest.mark.parametrize("count", [1, 3, 8, 30])
@pytest.mark.parametrize("name", NAMES)
def test_train_ids_under_any_name_are_refused_as_label_ids(tmp_path, name, count, rest):
    meta = get_meta("cityscapes")
    shares = {value: share for value, share in STREET.items() if rest or value != 255}
    write(tmp_path, meta, [draw(shares, seed) for seed in range(count)], name)
    assert_refused(
        tmp_path, meta,
        "set DATASET.LABELS labelTrainIds (DATASET.LABELS labelIds keeps it as it is)",
    )  # fmt: skip
    assert_accepted(tmp_path, meta, "labelTrainIds")


def test_the_sentence_gives_values_and_shares(tmp_path):
    meta = get_meta("cityscapes")
    label = np.repeat(np.array([0, 1, 2, 8, 13], np.uint8), 40).reshape(10, 20)
    write(tmp_path, meta, [label, label])
    with pytest.raises(DataError) as error:
        quick(tmp_path, meta)
    assert str(error.value) == (
        f"{tmp_path}/train.lst: 2 labels hold the values 0..2, 8, 13: read as labelIds 40% of "
        "their pixels are classes, read as labelTrainIds 100%; set DATASET.LABELS labelTrainIds "
        "(DATASET.LABELS labelIds keeps it as it is)"
    )


def test_who_names_the_encoding_is_warned_only(tmp_path):
    meta = get_meta("cityscapes")
    write(tmp_path, meta, [draw(STREET, seed) for seed in range(3)])
    remarks = quick(tmp_path, meta, "labelIds")
    assert "is labelIds meant, as DATASET.LABELS says?" in remarks[0]
    assert "of the label pixels are ignored when read as labelIds" in remarks[1]
    summary = check_list(tmp_path, "train.lst", meta, "labelIds")
    assert summary.problems == [] and summary.notes[:2] == remarks


def test_few_pixels_more_are_a_remark_unless_the_names_agree(tmp_path):
    meta = get_meta("cityscapes")
    shares = {0: 6, 1: 4, 8: 60, 11: 10, 13: 20}
    write(tmp_path, meta, [draw(shares, seed) for seed in range(3)])
    (remark,) = quick(tmp_path, meta)
    assert "if they are such, set DATASET.LABELS labelTrainIds" in remark
    write(tmp_path, meta, [draw(shares, seed) for seed in range(3)], "{}_trainIds.png")
    assert_refused(tmp_path, meta, "set DATASET.LABELS labelTrainIds")


def test_one_value_is_enough_unless_it_is_0(tmp_path):
    meta = get_meta("cityscapes")
    write(tmp_path, meta, [draw({8: 50, 10: 30, 13: 20}, seed) for seed in range(2)])
    assert_refused(tmp_path, meta, "set DATASET.LABELS labelTrainIds")
    write(tmp_path, meta, [draw({8: 60, 0: 40}, seed) for seed in range(2)])
    assert_accepted(tmp_path, meta)


@pytest.mark.parametrize(
    ("name", "encoding", "values", "words"),
    [
        ("cityscapes", "", [0], "read as labelTrainIds all of their pixels are classes; set DA"),
        ("cityscapes", "labelIds", [0], "; set DATASET.LABELS labelTrainIds"),
        ("cityscapes", "", [0, 3], "; set DATASET.LABELS labelTrainIds"),
        ("ade20k", "", [0], "read as reduced all of their pixels are classes; set DATASET.LABELS"),
        ("cocostuff10k", "trainIdsFrom1", [0], "; set DATASET.LABELS trainIds"),
        ("cityscapes", "", [0, 255], "DATASET.LABELS accepts labelIds, labelTrainIds"),
        ("cityscapes", "labelTrainIds", [255], "DATASET.LABELS accepts labelIds, labelTrainIds"),
        ("cocostuff10k", "", [255], "DATASET.LABELS accepts trainIds, trainIdsFrom1"),
        ("voc2012", "", [255], "DATASET.LABELS accepts index, color"),
    ],
)
def test_labels_without_any_class_name_the_encoding_that_makes_all_classes(
    tmp_path, name, encoding, values, words
):
    meta = get_meta(name)
    write(tmp_path, meta, [draw(dict.fromkeys(values, 1), seed) for seed in range(4)])
    with pytest.raises(DataError) as error:
        quick(tmp_path, meta, encoding)
    problems = check_list(tmp_path, "train.lst", meta, encoding).problems
    assert any(words in text for text in problems) and words in str(error.value)


@pytest.mark.parametrize("count", [1, 2, 8])
def test_true_label_ids_are_left_alone(tmp_path, count):
    meta = get_meta("cityscapes")
    table = np.zeros(256, np.uint8)
    table[:19] = LABEL_IDS
    labels = []
    for seed in range(count):
        label = table[draw(STREET, seed)]
        label[:2, ::2] = 4
        label[-2:] = (0, 1, 2, 3, 9, 10, 14, 15) * 5
        labels.append(label)
    for name in ("{}.png", "{}_gtFine_labelIds.png"):
        write(tmp_path, meta, labels, name)
        assert_accepted(tmp_path, meta)


@pytest.mark.parametrize("count", [1, 3, 8])
def test_label_ids_of_few_classes_are_never_refused(tmp_path, count):
    """Road, pavement and buildings with the car's own bonnet: all values are train ids too."""
    meta = get_meta("cityscapes")
    shares = {0: 2, 1: 7, 2: 1, 3: 3, 7: 50, 8: 17, 11: 20}
    write(tmp_path, meta, [draw(shares, seed) for seed in range(count)])
    assert all("if they are such" in remark for remark in quick(tmp_path, meta))
    assert check_list(tmp_path, "train.lst", meta).problems == []
    assert quick(tmp_path, meta, "labelIds")[0].endswith("as DATASET.LABELS says?")


def test_one_unknown_value_does_not_turn_the_advice_around(tmp_path):
    meta = get_meta("cityscapes")
    labels = [draw(STREET, seed) for seed in range(3)]
    labels[1][5, 5] = 33
    write(tmp_path, meta, labels)
    (problem,) = check_list(tmp_path, "train.lst", meta, "labelTrainIds").problems
    assert "label value 33 in labels/frame1.png is neither a class" in problem


# ADE20K: 1..150 with 0 for the rest, or 0..149 with 255


def test_reduced_ade20k_labels_are_recognised_by_255(tmp_path):
    meta = get_meta("ade20k")
    values = [*range(0, 150, 7), 149, 255]
    labels = [draw(dict.fromkeys(values, 1), seed) for seed in range(3)]
    write(tmp_path, meta, labels)
    words = r"value 255 in labels/frame0.png .* as DATASET.LABELS reduced all its values would be"
    with pytest.raises(DataError, match=words):
        quick(tmp_path, meta)
    problem = check_list(tmp_path, "train.lst", meta).problems[-1]
    assert "set DATASET.LABELS reduced (DATASET.LABELS annotations keeps it" in problem
    assert_accepted(tmp_path, meta, "reduced")
    assert meta.encode(np.array([[0, 149, 255]], np.uint8), "reduced").tolist() == [[0, 149, 255]]
    assert meta.decode(np.array([[0, 149]], np.uint8), "reduced").tolist() == [[0, 149]]


@pytest.mark.parametrize("count", [1, 8, 30])
def test_published_ade20k_labels_are_left_alone(tmp_path, count):
    meta = get_meta("ade20k")
    for shares in ({0: 40, 1: 30, 3: 20, 12: 10}, {1: 50, 5: 50}, {0: 5, 150: 20, 17: 60}):
        write(tmp_path, meta, [draw(shares, seed) for seed in range(count)])
        assert_accepted(tmp_path, meta)


def test_a_reduced_set_without_255_is_taken_as_named(tmp_path):
    meta = get_meta("ade20k")
    write(tmp_path, meta, [draw({0: 40, 3: 60}, seed) for seed in range(8)])
    assert_accepted(tmp_path, meta, "reduced")


# COCO-Stuff


@pytest.mark.parametrize("count", [1, 8])
@pytest.mark.parametrize(
    ("name", "encoding", "values"),
    [
        ("cocostuff10k", "", [0, 3, 11, 95, 120, 170, 255]),
        ("cocostuff10k", "", [3, 11, 95, 120, 170]),
        ("cocostuff10k", "trainIds", [0, 3, 11, 95, 120, 170]),
        ("cocostuff10k", "trainIdsFrom1", [0, 1, 12, 95, 171]),
        ("cocostuff10k", "trainIdsFrom1", [0, 1, 13, 95]),
        ("cocostuff10k", "categoryIds", [0, 1, 13, 95, 182]),
        ("cocostuff10k", "categoryIds", [0, 1, 13, 95]),
        ("cocostuff164k", "", [0, 11, 95, 170, 255]),
        ("cocostuff164k", "", [0, 12, 95]),
        ("cocostuff164k", "stuffthingmaps", [0, 12, 95, 181, 255]),
        ("cocostuff164k", "stuffthingmaps", [0, 12, 95]),
    ],
)
def test_true_labels_of_cocostuff_are_left_alone(tmp_path, name, encoding, values, count):
    meta = get_meta(name)
    labels = [draw(dict.fromkeys(values, 1), seed) for seed in range(count)]
    write(tmp_path, meta, labels, "{}_labelTrainIds.png")
    assert_accepted(tmp_path, meta, encoding)


def test_ids_from_1_read_as_train_ids(tmp_path):
    meta = get_meta("cocostuff10k")
    write(tmp_path, meta, [draw({0: 10, 5: 60, 171: 30}, seed) for seed in range(3)])
    with pytest.raises(DataError, match=r"as DATASET.LABELS trainIdsFrom1 all its"):
        quick(tmp_path, meta)
    labels = [draw({0: 10, 5: 60, 12 + seed: 30}, seed) for seed in range(25)]
    write(tmp_path, meta, labels[:3])  # few labels may just have no unlabelled pixel
    (remark,) = quick(tmp_path, meta)
    assert "none of 3 labels has the value 255 that trainIds ignores" in remark
    assert "then set DATASET.LABELS trainIdsFrom1 (DATASET.LABELS trainIds keeps it" in remark
    assert check_list(tmp_path, "train.lst", meta).problems == []
    write(tmp_path, meta, labels)
    assert_refused(tmp_path, meta, "set DATASET.LABELS trainIdsFrom1")
    summary = check_list(tmp_path, "train.lst", meta)
    assert (
        len(summary.problems) == 1 and "none of 25 labels has the value 255" in summary.problems[0]
    )
    assert check_list(tmp_path, "train.lst", meta, "trainIds").problems == []
    write(tmp_path, meta, [draw({0: 10, 5: 90}, seed) for seed in range(3)])
    (remark,) = quick(tmp_path, meta)
    assert "then set DATASET.LABELS trainIdsFrom1 or categoryIds (DATASET" in remark


VALUES_10K = {
    "trainIds": [0, 3, 11, 95, 170, 255],
    "trainIdsFrom1": [0, 1, 12, 95, 171],
    "categoryIds": [0, 1, 13, 95, 182],
}


@pytest.mark.parametrize("name", VALUES_10K)
@pytest.mark.parametrize("count", [1, 8])
def test_the_spelling_of_10k_labels_is_told_as_the_check_does(tmp_path, name, count):
    meta = get_meta("cocostuff10k")
    labels = [draw(dict.fromkeys(VALUES_10K[name], 1), seed) for seed in range(count)]
    write(tmp_path, meta, labels, "{}_labelTrainIds.png")
    files = sorted((tmp_path / "cocostuff10k/labels").iterdir())
    assert spelling_10k(files) == [name]
    assert_accepted(tmp_path, meta, name)
    if name != "trainIds":
        problems = check_list(tmp_path, "train.lst", meta).problems
        assert all(f"as DATASET.LABELS {name} all its" in text for text in problems[:count])


def test_10k_labels_that_decide_little_are_told_as_the_check_does(tmp_path):
    meta = get_meta("cocostuff10k")
    for count, spellings in ((3, ["trainIds"]), (8, ["trainIdsFrom1", "categoryIds"])):
        write(tmp_path, meta, [draw({0: 10, 5: 90}, seed) for seed in range(count)])
        files = sorted((tmp_path / "cocostuff10k/labels").iterdir())
        assert spelling_10k(files) == spellings
    assert_refused(tmp_path, meta, "set DATASET.LABELS trainIdsFrom1 or categoryIds")


# others


def test_single_encodings_are_left_alone(tmp_path):
    for name, encoding, values in (
        ("voc2012", "", [0, 5, 15, 255]),
        ("voc2012", "", [0]),
        ("camvid", "index", [0, 3, 10, 11]),
        ("camvid", "index", [3, 4]),
    ):
        meta = get_meta(name)
        write(tmp_path, meta, [draw(dict.fromkeys(values, 1), seed) for seed in range(3)])
        assert_accepted(tmp_path, meta, encoding)


@pytest.mark.parametrize("share", [40, 60])
def test_mostly_ignored_labels_are_said_to_be(tmp_path, share):
    meta = get_meta("camvid")
    label = np.full((10, 20), 3, np.uint8)
    label.flat[: 2 * share] = 11
    write(tmp_path, meta, [label])
    remarks = quick(tmp_path, meta, "index")
    notes = check_list(tmp_path, "train.lst", meta, "index").notes
    if share < 50:
        assert remarks == [] and not any("are ignored" in note for note in notes)
    else:
        assert remarks == [
            f"{tmp_path}/train.lst: 60% of the label pixels are ignored when read as index; only "
            "the others train and count"
        ]
        assert remarks[0] in notes


def test_a_background_that_is_ignored_or_left_out(tmp_path):
    file = tmp_path / "plants.yaml"
    names = "class_names: [leaf, stem]\nencoding: {1: leaf, 2: stem}\n"
    file.write_text(names + "ignored: others\n")
    meta = get_meta(str(file))
    write(tmp_path, meta, [draw({0: 30, 1: 40, 2: 30}, seed) for seed in range(2)])
    for ignored in ("others", "[0]", "[0, 255]"):
        file.write_text(f"{names}ignored: {ignored}\n")
        (remark,) = quick(tmp_path, get_meta(str(file)))
        assert re.search("label value 0, (29|3.)% of the label pixels, is ignored; if it", remark)
        assert f"give it a class in {file}, in class_names and as 0 in encoding" in remark
        assert remark in check_list(tmp_path, "train.lst", get_meta(str(file))).notes
    file.write_text(names)
    words = (
        rf"label value 0 in labels/frame0.png is neither a class of plants \(1, 2\) nor ignore "
        rf"\(none\); every value of the labels is declared in {file}, with its class under encoding"
    )
    with pytest.raises(DataError, match=words):
        quick(tmp_path, get_meta(str(file)))
    file.write_text("class_names: [soil, leaf, stem]\nencoding: {0: soil, 1: leaf, 2: stem}\n")
    assert quick(tmp_path, get_meta(str(file))) == []
