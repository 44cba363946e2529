"""Files made from other files have names of their own, wherever they are written."""

import pytest

from utils.names import distinct_files, file_stem


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        (["a/x.jpg", "b/y.jpg"], ["x.png", "y.png"]),
        (["a/x.jpg", "b/x.jpg", "b/y.jpg"], ["a/x.png", "b/x.png", "b/y.png"]),
        (["x.jpg", "a/x.jpg"], ["x.png", "a/x.png"]),
        (["a/x.jpg", "a/x.png"], ["a/x.jpg.png", "a/x.png.png"]),
        (["x.jpg", "X.jpg", "y.jpg"], ["x.jpg.png", "X.jpg~2.png", "y.jpg.png"]),
        (["a/x.jpg", "A/x.jpg"], ["a/x.jpg.png", "A/x.jpg~2.png"]),
        (["x.jpg", "X.jpg", "x.jpg~2"], ["x.jpg.png", "X.jpg~3.png", "x.jpg~2.png"]),
        (["a/\u00e9.jpg", "b/e\u0301.jpg"], ["a/\u00e9.png", "b/e\u0301.png"]),
        (["/data/a/x.jpg", "/data/b/x.jpg"], ["data/a/x.png", "data/b/x.png"]),
        (["../a/x.jpg", "../../b/x.jpg"], ["a/x.png", "b/x.png"]),
        (["a/../x.jpg", "a/x.jpg"], ["a/x.jpg.png", "a/x.jpg~2.png"]),
        (["x", "x.png/y", "z/y"], ["x~2.png", "x.png/y.png", "z/y.png"]),
        (["archive.tar.gz", "archive.tar.bz2"], ["archive.tar.gz.png", "archive.tar.bz2.png"]),
        (["scene_000100"], ["scene_000100.png"]),
        ([], []),
    ],
)
def test_names_are_as_short_as_they_can_be(sources, expected, tmp_path):
    names = distinct_files(sources, ".png")
    assert names == expected
    for name in names:  # they are files beside one another
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch(exist_ok=False)
        assert (tmp_path / name).resolve().is_relative_to(tmp_path)
    assert len({name.casefold() for name in names}) == len(names)


@pytest.mark.parametrize(
    ("text", "stem"),
    [
        ("list/camvid/val", "list-camvid-val"),
        ("..\\up:100", "up-100"),
        ("a b.c_d", "a b.c_d"),
        ("ä" * 80, "ä" * 50),
    ],
)
def test_a_stem_holds_nothing_that_a_file_system_refuses(text, stem):
    assert file_stem(text) == stem
