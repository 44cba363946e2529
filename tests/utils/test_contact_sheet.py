import numpy as np
import pytest

from utils.contact_sheet import Tile, contact_sheet

RED, BLUE = (250, 0, 0), (0, 0, 250)


def plain(color, height=40, width=60):
    return np.full((height, width, 3), color, np.uint8)


def count(sheet, color):
    return int((sheet == color).all(-1).sum())


def test_pictures_fill_their_tiles_and_suspects_are_framed():
    tiles = [
        Tile([plain(RED), plain(BLUE)], "1: a.png"),
        Tile([plain(RED, 60, 40)], "2: b.png", marked=True),
        Tile([], "3: c.png", marked=True),
    ]
    sheet = contact_sheet(tiles, [("leaf", (1, 200, 3))], columns=2)
    assert sheet.dtype == np.uint8 and sheet.shape[2] == 3
    assert count(sheet, RED) == 160 * 240 + 180 * 120  # fitted into 180 x 240, ratio kept
    assert count(sheet, BLUE) == 160 * 240
    assert count(sheet, (1, 200, 3)) > 80  # the legend
    assert count(sheet, (200, 200, 200)) > 0.9 * 2 * 180 * 240  # the unreadable one
    one = contact_sheet(tiles[:2], columns=2)
    assert sheet.shape[0] > 1.9 * one.shape[0] - 100


def test_captions_beyond_ascii_and_long_ones_stay_on_the_sheet():
    long = contact_sheet([Tile([plain(RED)], "7: straße/" + "x" * 300)], columns=1)
    short = contact_sheet([Tile([plain(RED)], "7: a")], columns=1)
    assert long.shape == short.shape
    assert not np.array_equal(long, short)


def test_many_classes_are_cut_and_no_tile_is_refused():
    legend = [(f"class {number}", (number, 0, 0)) for number in range(171)]
    tall = contact_sheet([Tile([plain(RED)], "a")], legend, columns=1)
    assert tall.shape[0] < 500
    with pytest.raises(ValueError, match="one tile at least"):
        contact_sheet([])
