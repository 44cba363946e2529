import numpy as np
import pytest

from configs import get_config
from configs.loader import run_folder
from datasets import ColorEncoding, DataError, get_meta
from datasets.private import distinct_colors

THREE = "class_names: [soil, leaf, stem]\n"


@pytest.fixture
def declare(tmp_path):
    """The dataset of a yaml file with the given content."""

    def read(text: str, name: str = "plants.yaml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return get_meta(str(path))

    return read


def test_names_alone_are_enough(declare, tmp_path):
    meta = declare(THREE)
    assert (meta.name, meta.class_names) == ("plants", ("soil", "leaf", "stem"))
    assert len(set(meta.palette)) == 3
    label = np.array([[0, 1, 2, 255]], np.uint8)
    assert np.array_equal(meta.encode(label), label)
    assert meta.folder_under(tmp_path) == tmp_path
    (tmp_path / "plants").mkdir()
    assert meta.folder_under(tmp_path) == tmp_path / "plants"


def test_values_of_ones_own(declare):
    meta = declare(THREE + "encoding: {10: soil, 20: leaf, 21: leaf, 30: stem}\nignored: [0]\n")
    assert meta.encode(np.array([[10, 21, 20, 30, 0]], np.uint8)).tolist() == [[0, 1, 1, 2, 255]]
    with pytest.raises(DataError, match=r"values 9, 255 in the label are neither .* \(10, 20, 21,"):
        meta.encode(np.array([[9, 10, 255]], np.uint8))
    rest = declare(THREE + "encoding: {10: soil, 20: leaf, 30: stem}\nignored: others\n")
    assert rest.encode(np.array([[9, 10, 255]], np.uint8)).tolist() == [[255, 0, 255]]


def test_colours_of_ones_own(declare):
    meta = declare(
        THREE + "palette: [[0, 0, 0], [0, 200, 0], [90, 60, 0]]\nencoding: color\n"
        "class_weights: [1, 2, 2.5]\nignore_label: 200\n"
    )
    assert isinstance(meta.encoding(), ColorEncoding)
    label = np.array([[[90, 60, 0], [1, 1, 1]]], np.uint8)
    assert meta.encode(label).tolist() == [[2, 200]]
    assert meta.class_weights == (1.0, 2.0, 2.5)


def test_with_two_classes_255_has_to_be_declared(declare):
    meta = declare("class_names: [background, leaf]")
    words = r"255 in the label is neither .* nor ignore \(none\); a mask of 0 and 255 is declared"
    with pytest.raises(DataError, match=words):
        meta.encode(np.array([[0, 255]], np.uint8))
    ignoring = declare("class_names: [background, leaf]\nignored: [255]")
    assert ignoring.encode(np.array([[0, 255]], np.uint8)).tolist() == [[0, 255]]


@pytest.mark.parametrize(
    ("weights", "read"),
    [
        ("[1e-1, 5, 5]", (0.1, 5.0, 5.0)),  # yaml reads the first as text
        ("['2', 1E+2, .5]", (2.0, 100.0, 0.5)),
        ("\n- 1e-3\n- 0\n- 1.0e-1\n", (0.001, 0.0, 0.1)),
    ],
)
def test_weights_may_be_written_as_text(declare, weights, read):
    assert declare(THREE + f"class_weights: {weights}\n").class_weights == read


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("class_names: [a, b", "is not valid yaml"),
        ("[a, b]", "declared as KEY: value"),
        ("names: [a, b]", "unknown key names; did you mean class_names?"),
        ("colour: 1\nclass_names: [a, b]", "unknown key colour"),
        ("palette: []", "class_names is None; accepted: a list"),
        ("class_names: [leaf]", "one class, leaf; a mask of one thing has two"),
        ("class_names: [yes, no]", "class name True is not text; put it in quotes"),
        ("class_names: [a, a]", "occurs twice"),
        ("class_names: [a, b]\npalette: [[1, 2, 3]]", "1 colours for 2 classes"),
        ("class_names: [a, b]\npalette: [[1, 2, 3], [0, 0, 300]]", "is not an RGB colour"),
        ("class_names: [a, b]\npalette: red", "palette is 'red'; accepted: a colour"),
        ("class_names: [a, b]\nencoding: color", "needs the palette"),
        (
            "class_names: [a, b]\npalette: [[1, 2, 3], [1, 2, 3]]\nencoding: color",
            "a colour of the palette stands for two classes",
        ),
        ("class_names: [a, b]\nencoding: rgb", "accepted: index, color, or values"),
        ("class_names: [a, leaf]\nencoding: {0: a, 1: leave}", "no class; did you mean leaf?"),
        ("class_names: [a, b]\nencoding: {0: a, 256: b}", "is 256; accepted: 0..255"),
        ("class_names: [a, b]\nencoding: {0: a}", "leads to the classes 0; it must lead to"),
        ("class_names: [a, b]\nignored: 255", "ignored is 255; accepted: a list"),
        ("class_names: [a, b]\nignored: [0]", "label values 0 are both a class and ignored"),
        ("class_names: [a, b]\nclass_weights: [1]", "1 class weights for 2 classes"),
        ("class_names: [a, b]\nclass_weights: heavy", "accepted: a number for each class"),
        ("class_names: [a, b]\nclass_weights: [1, yes]", "accepted: a number for each class"),
        ("class_names: [a, b]\nclass_weights: [1, 1e-]", "accepted: a number for each class"),
        ("class_names: [a, b]\nclass_weights: [1, [2]]", "accepted: a number for each class"),
        ("class_names: [a, b]\nclass_weights: [1, ]", "1 class weights for 2 classes"),
        ("class_names: [a, b]\nclass_weights: '12'", "accepted: a number for each class"),
        ("class_names: [a, b]\nclass_weights: [1, nan]", "class weights 1, nan; accepted: finite"),
        ("class_names: [a, b]\nclass_weights: [0, 0]", "class weights 0, 0; accepted: finite"),
        ("class_names: [a, b]\nclass_weights: [1, -1]", "class weights 1, -1; accepted: finite"),
        ("class_names: [a, b]\nclass_weights: [1, .inf]", "class weights 1, inf; accepted: fin"),
        ("class_names: [a, b]\nclass_weights: [1, -.inf]", "class weights 1, -inf; accepted"),
        ("class_names: [a, b]\nclass_weights: [.nan, 1]", "class weights nan, 1; accepted: fin"),
        ("class_names: [a, b]\nclass_weights: [1, 1%s]" % ("0" * 400), "class weights 1, inf; acc"),
        ("class_names: [a, b]\nclass_weights: [1, -1%s]" % ("0" * 400), "class weights 1, -inf; a"),
        ("class_names: [a, b]\nclass_weights: [1, '1%s']" % ("0" * 400), "class weights 1, inf; a"),
        ("class_names: [a, b]\nclass_weights: [1, 0x%s]" % ("f" * 5000), "class weights 1, inf; a"),
        ("class_names: [a, b]\nclass_weights: [1, 1%s]" % ("0" * 5000), "is not valid yaml: Excee"),
        ("class_names: [a, b]\nclass_weights: [1, 1e400]", "class weights 1, inf; accepted: fin"),
        ("class_names: [a, b]\nclass_weights: 2024-99-99", "is not valid yaml: month must be"),
        ("class_names: [a, b]\nignore_label: 1", "ignore label 1; accepted: 2..255"),
    ],
)
def test_a_bad_file_is_refused_with_its_name(declare, text, words):
    with pytest.raises(ValueError) as error:
        declare(text)
    assert words in str(error.value) and "plants.yaml" in str(error.value)
    assert "\n" not in str(error.value)


def test_other_text_than_utf_8_is_refused_with_the_files_name(declare, tmp_path):
    for encoding in ("utf-16", "utf-16-le", "latin-1"):
        (tmp_path / "plants.yaml").write_text(THREE + "# grün\n", encoding=encoding)
        with pytest.raises(DataError, match=r"plants.yaml is not a text .*; save it as UTF-8$"):
            get_meta(str(tmp_path / "plants.yaml"))


def test_a_missing_file_and_a_taken_name(declare, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"DATASET.DATASET .*none.yaml does not exist"):
        get_meta(str(tmp_path / "none.yaml"))
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(FileNotFoundError, match=r"folder.yaml is a folder, not a file"):
        get_meta(str(tmp_path / "folder.yaml"))
    with pytest.raises(ValueError, match="camvid is a dataset that is built in; rename the file"):
        declare(THREE, "camvid.yaml")
    with pytest.raises(ValueError, match="letters, digits"):
        declare(THREE, "my plants.yaml")


def test_runs_are_named_by_the_file(tmp_path):
    config = get_config(
        "configs/own/rtlinearformer_slim_own.yaml", ["DATASET.DATASET", str(tmp_path / "x.yaml")]
    )
    assert run_folder(config, "a/b.yaml").as_posix() == "output/x/b"


@pytest.mark.parametrize("count", [1, 2, 19, 60, 150, 255])
def test_drawn_up_colours_are_told_apart_and_none_is_black(count):
    colors = np.array(distinct_colors(count), int)
    assert colors.shape == (count, 3) and colors.min() >= 0 and colors.max() <= 255
    with_black = np.vstack([colors, [[0, 0, 0]]])  # the colour of ignored pixels
    apart = np.abs(with_black[:, None] - with_black).max(2) + 255 * np.eye(count + 1, dtype=int)
    assert apart.min() >= (100 if count <= 2 else 60 if count <= 19 else 30)
    assert np.array_equal(colors, distinct_colors(255)[:count])


def test_ignored_pixels_stay_black_beside_drawn_up_colours(declare):
    meta = declare(THREE)
    picture = meta.colorize(np.array([[0, 1, 2, 255]], np.uint8))
    assert picture[0, 3].tolist() == [0, 0, 0] and (picture[0, :3].max(1) > 100).all()
