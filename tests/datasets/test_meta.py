import pickle

import numpy as np
import pytest

from datasets import ColorEncoding, DataError, DatasetMeta, IdEncoding, get_meta, list_datasets
from datasets.meta import format_ranges


def make(**more) -> DatasetMeta:
    arguments = {
        "name": "farm",
        "class_names": ("soil", "crop"),
        "palette": ((1, 2, 3), (4, 5, 6)),
        "encodings": {"index": IdEncoding({0: 0, 1: 1}, frozenset({255}))},
    }
    return DatasetMeta(**(arguments | more))


@pytest.mark.parametrize("name", list_datasets())
def test_every_dataset_is_consistent_and_travels_to_other_processes(name):
    meta = get_meta(name)
    assert meta.name == name
    assert len(meta.palette) == meta.num_classes == len(meta.class_names)
    if any(isinstance(scheme, ColorEncoding) for scheme in meta.encodings.values()):
        assert len(set(meta.palette)) == meta.num_classes  # ADE20K and COCO-Stuff repeat some
    label = np.arange(meta.num_classes, dtype=np.uint8)[None]
    for encoding, scheme in meta.encodings.items():
        assert scheme.classes() == set(range(meta.num_classes))
        assert np.array_equal(meta.encode(meta.decode(label, encoding), encoding), label)
    assert pickle.loads(pickle.dumps(meta)) == meta
    assert len(pickle.dumps(meta)) < 20_000  # tables built on the way stay at home


def test_an_unknown_name_points_to_the_nearest():
    with pytest.raises(ValueError, match="unknown dataset 'CityScape'; did you mean cityscapes"):
        get_meta("CityScape")


def test_a_folder_is_no_data_set_but_may_hold_its_description(tmp_path):
    with pytest.raises(ValueError, match="unknown dataset"):
        get_meta(str(tmp_path))
    (tmp_path / "own.yaml").write_text("")
    with pytest.raises(ValueError, match=r"is a folder; the data set is described by .*own\.yaml"):
        get_meta(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"class_names": ("soil",)}, "1 classes; 2 to 255"),
        ({"class_names": ("soil", "soil")}, "occurs twice"),
        ({"palette": ((1, 2, 3),)}, "1 colours for 2 classes"),
        ({"palette": ((1, 2, 3), (4, 5, 256))}, "not an RGB colour"),
        ({"ignore_label": 1}, "ignore label 1; accepted: 2..255"),
        ({"class_weights": (1.0,)}, "1 class weights for 2"),
        ({"class_weights": (0.0, 0.0)}, "class weights 0, 0; accepted: finite numbers of 0 or"),
        ({"class_weights": (1.0, -0.5)}, "class weights 1, -0.5; accepted: finite numbers"),
        ({"class_weights": (float("inf"), 1.0)}, "class weights inf, 1; accepted"),
        ({"class_weights": (1.0, float("nan"))}, "class weights 1, nan; accepted"),
        ({"class_weights": (1.0, 1e39)}, "class weights 1, 1e\\+39; accepted"),
        ({"class_weights": (0.0, 1e-60)}, "class weights 0, 1e-60; accepted"),
        ({"encodings": {}}, "no label encoding"),
        ({"encodings": {"index": IdEncoding({0: 0})}}, "index leads to the classes 0;"),
        ({"encodings": {"index": IdEncoding({0: 0, 1: 2})}}, "classes 0, 2; it must lead to each"),
    ],
)
def test_what_does_not_fit_together_is_refused(change, words):
    with pytest.raises(ValueError, match=words):
        make(**change)


def test_label_values_must_fit_and_mean_one_thing():
    with pytest.raises(ValueError, match="label value 256"):
        IdEncoding({256: 0})
    with pytest.raises(ValueError, match="values 3 are both"):
        IdEncoding({3: 0}, frozenset({3}))


def test_ids_become_classes_and_unknown_ids_are_named():
    meta = make(encodings={"ids": IdEncoding({7: 0, 9: 1}, frozenset({0}))})
    label = np.array([[7, 9, 0]], np.uint8)
    assert meta.encode(label).tolist() == [[0, 1, 255]]
    with pytest.raises(DataError) as error:
        meta.encode(np.array([[7, 33, 34, 35, 80]], np.uint8), source="labels/x.png")
    assert str(error.value) == (
        "label values 33..35, 80 in labels/x.png are neither a class of farm (7, 9) nor ignore (0)"
    )


def test_without_a_list_of_ignored_values_all_others_are_ignored():
    meta = make(encodings={"ids": IdEncoding({7: 0, 9: 1})}, ignore_label=200)
    assert meta.encode(np.array([[7, 9, 33, 255]], np.uint8)).tolist() == [[0, 1, 200, 200]]


def test_colours_become_classes_and_other_colours_are_ignored():
    colors = ColorEncoding({(1, 2, 3): 0, (3, 2, 1): 1})
    meta = make(encodings={"color": colors})
    label = np.array([[[1, 2, 3], [3, 2, 1], [1, 2, 4]]], np.uint8)
    assert meta.encode(label).tolist() == [[0, 1, 255]]
    assert meta.encode(np.ascontiguousarray(label[..., ::-1])).tolist() == [[1, 0, 255]]
    assert meta.decode(np.array([[1, 255]], np.uint8)).tolist() == [[[3, 2, 1], [0, 0, 0]]]


def test_an_unknown_encoding_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"DATASET.LABELS is 'rgb'.*accepted: color, index"):
        get_meta("camvid").encoding("rgb")


def test_pictures_are_black_where_nothing_counts():
    picture = make().colorize(np.array([[0, 1, 255]], np.uint8))
    assert picture.tolist() == [[[1, 2, 3], [4, 5, 6], [0, 0, 0]]]


def test_a_sentence_survives_the_wrapping_of_a_worker():
    wrapped = "Caught DataError in worker 0.\nTraceback:\n  x\ndatasets.meta.DataError: a is bad\n"
    assert str(DataError(wrapped)) == "a is bad"


def test_ranges_read_well():
    assert format_ranges([5, 0, 1, 2, 7, 8]) == "0..2, 5, 7, 8"
    assert format_ranges(None) == ""


def test_published_numbers_of_ade20k_cocostuff_and_voc():
    ade, voc = get_meta("ade20k"), get_meta("voc2012")
    names = ("wall", "building", "sky", "floor", "tree", "ceiling", "road", "bed")
    assert ade.class_names[:8] == names and ade.class_names[149] == "flag"
    assert ade.palette[:3] == ((120, 120, 120), (180, 120, 120), (6, 230, 230))
    assert ade.encode(np.array([[0, 1, 150]], np.uint8)).tolist() == [[255, 0, 149]]
    # The colours of VOC spell the bits of the index, highest bits first, in turn red, green, blue.
    for index, color in enumerate(voc.palette):
        bits = [sum((index >> 3 * k + c & 1) << 7 - k for k in range(3)) for c in range(3)]
        assert tuple(bits) == color
    assert voc.class_names[0] == "background" and voc.class_names[15] == "person"


@pytest.mark.parametrize(
    ("name", "encoding", "first"), [("164k", "stuffthingmaps", 0), ("10k", "categoryIds", 1)]
)
def test_published_categories_of_cocostuff(name, encoding, first):
    meta = get_meta(f"cocostuff{name}")
    numbers = {"person": 1, "stop sign": 13, "toothbrush": 90, "banner": 92, "wood": 182}
    for text, number in numbers.items():
        written = np.array([[number - 1 + first]], np.uint8)
        assert meta.class_names[meta.encode(written, encoding)[0, 0]] == text
    for never in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91):
        with pytest.raises(DataError, match="neither a class"):
            meta.encode(np.array([[never - 1 + first]], np.uint8), encoding)
    unlabelled = np.array([[255 if first == 0 else 0]], np.uint8)
    assert meta.encode(unlabelled, encoding)[0, 0] == 255


def test_a_value_of_another_encoding_points_to_it():
    meta = get_meta("cocostuff164k")
    with pytest.raises(
        DataError, match=r"as DATASET\.LABELS stuffthingmaps all its values would be"
    ):
        meta.encode(np.array([[3, 181]], np.uint8))


def test_the_folder_of_a_dataset_is_where_its_archive_puts_it(tmp_path):
    meta = get_meta("voc2012")
    assert meta.folder_under(tmp_path) == tmp_path / "voc2012"
    for folder in ("VOCdevkit/VOC2012", "voc2012", "voc2012/VOCdevkit/VOC2012"):
        (tmp_path / folder).mkdir(parents=True)
        assert meta.folder_under(tmp_path) == tmp_path / folder
