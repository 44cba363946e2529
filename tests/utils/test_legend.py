"""Class names below pictures."""

import numpy as np
import pytest

from utils.legend import INK, PAPER, drawable, legend_strip, with_legend

NAMES = ["road", "größe", "тротуар", "道路", "a name that is much longer than any column can be"]
COLORS = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0), (0, 250, 250)]
ENTRIES = tuple(zip(NAMES, COLORS, strict=True))


def count(picture, color):
    return int((picture == color).all(-1).sum())


def test_every_entry_has_its_colour_and_its_name():
    strip = legend_strip(ENTRIES, 640)
    assert strip.dtype == np.uint8 and strip.shape[1:] == (640, 3)
    assert len({count(strip, color) for color in COLORS}) == 1 and count(strip, COLORS[0]) > 60
    assert count(strip, PAPER) > strip.shape[0] * 640 / 2
    assert count(legend_strip((("", COLORS[0]),), 640), INK) < count(
        legend_strip(ENTRIES[:1], 640), INK
    )


@pytest.mark.parametrize("width", [70, 100, 150, 400, 2000])
def test_nothing_is_drawn_beyond_the_edge(width):
    strip = legend_strip(ENTRIES, width)
    assert strip.shape[1] == width and count(strip[:, -1:], PAPER) == len(strip)


def test_names_that_the_font_lacks_are_numbers():
    assert drawable(NAMES) == ("road", "größe", "тротуар", "class 3", NAMES[4])


def test_many_classes_are_cut():
    entries = tuple((f"class {number}", (number, 9, 9)) for number in range(171))
    strip = legend_strip(entries, 300, most_rows=4)
    shown = sum(count(strip, color) > 60 for _, color in entries)
    assert strip.shape[0] < 80 and 4 <= shown < 20
    assert count(strip, entries[0][1]) > 60


@pytest.mark.parametrize(("height", "width"), [(360, 480), (1024, 2048), (1, 300), (4320, 7680)])
def test_the_picture_stays_as_it_is(height, width):
    picture = np.full((height, width, 3), 77, np.uint8)
    both = with_legend(picture, ENTRIES[:3])
    assert np.array_equal(both[:height], picture)
    assert height < len(both) < 1.6 * height + 100
    assert all(count(both[height:], color) for color in COLORS[:3])
    assert both is not picture and np.array_equal(with_legend(picture, ()), picture)


@pytest.mark.parametrize("width", [1, 20, 65])
def test_a_narrow_picture_has_none(width):
    picture = np.full((50, width, 3), 77, np.uint8)
    assert with_legend(picture, ENTRIES).shape == picture.shape
