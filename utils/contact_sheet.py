"""Many small pictures on one sheet, to look at a dataset at a glance."""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from .errors import InputError
from .legend import legend_strip

TILE = (180, 240)  # height, width that a picture is fitted into
LINE = 16  # height of a line of text
FONT, FONT_SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.38
PAPER, INK, ALARM = (255, 255, 255), (40, 40, 40), (200, 30, 30)


class Tile(NamedTuple):
    """One scene: RGB uint8 pictures of one size side by side, a caption, and whether to mark it.

    No pictures = the scene cannot be read.
    """

    pictures: Sequence[np.ndarray]
    caption: str
    marked: bool = False


def contact_sheet(
    tiles: Sequence[Tile],
    legend: Sequence[tuple[str, tuple[int, int, int]]] = (),
    columns: int = 2,
) -> np.ndarray:
    """The tiles in rows of `columns`, below the colours of the classes.

    Args:
        tiles: at least one.
        legend: name and RGB colour.

    Returns:
        RGB uint8. Raises ValueError without tiles.
    """
    if not tiles:
        raise InputError("a contact sheet needs one tile at least")
    wide = max(len(tile.pictures) for tile in tiles) or 1
    heights = [_fitted(picture)[0] for tile in tiles for picture in tile.pictures]
    cells = [_cell(tile, wide, max(heights, default=TILE[0])) for tile in tiles]
    blank = np.full_like(cells[0], 255)
    cells += [blank] * (-len(cells) % columns)
    rows = [np.hstack(cells[first : first + columns]) for first in range(0, len(cells), columns)]
    return np.vstack([legend_strip(tuple(legend), rows[0].shape[1]), *rows])


def _fitted(picture: np.ndarray) -> tuple[int, int]:
    """Height and width of a picture in its tile."""
    scale = min(TILE[0] / picture.shape[0], TILE[1] / picture.shape[1])
    return max(1, int(picture.shape[0] * scale)), max(1, int(picture.shape[1] * scale))


def _cell(tile: Tile, wide: int, height: int) -> np.ndarray:
    width = TILE[1]
    cell = np.full((height + LINE + 8, wide * (width + 4) + 8, 3), 255, np.uint8)
    for position in range(wide):
        left = 4 + position * (width + 4)
        area = cell[4 : 4 + height, left : left + width]
        if not tile.pictures:
            area[:] = 200
            _write(area, "unreadable", 8, height // 2, ALARM)
        elif position < len(tile.pictures):
            picture = tile.pictures[position]
            rows, across = _fitted(picture)
            small = cv2.resize(picture, (across, rows), interpolation=cv2.INTER_AREA)
            area[:rows, :across] = small
    if tile.marked:
        cv2.rectangle(cell, (1, 1), (cell.shape[1] - 3, height + 6), ALARM, 2)
    _write(cell, tile.caption, 5, height + LINE + 2, ALARM if tile.marked else INK)
    return cell


def _write(picture: np.ndarray, text: str, x: int, y: int, color: tuple[int, int, int]) -> None:
    # The font knows ASCII; the end of a long path says more than its beginning.
    plain = text.encode("ascii", "replace").decode()
    while (
        len(plain) > 4 and cv2.getTextSize(plain, FONT, FONT_SCALE, 1)[0][0] > picture.shape[1] - x
    ):
        plain = ".." + plain[3:]
    cv2.putText(picture, plain, (x, y), FONT, FONT_SCALE, color, 1, cv2.LINE_AA)
