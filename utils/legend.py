"""Class names beside their colours, to be put below a picture."""

import functools
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont

Entry = tuple[str, tuple[int, int, int]]  # name and RGB colour

PAPER, INK = (255, 255, 255), (40, 40, 40)
SMALLEST, LARGEST = 11, 96  # of letters, in pixels
LEAST_WIDTH, MOST_WIDTH = 6, 12  # of a column, in heights of a letter


def text_size(size: tuple[int, int]) -> int:
    """Height of letters, in pixels, that suits a picture of `size` (height, width)."""
    return int(np.clip((size[0] * size[1]) ** 0.5 / 60, SMALLEST, LARGEST))


def with_legend(picture: np.ndarray, entries: Sequence[Entry]) -> np.ndarray:
    """A picture (H, W, 3), RGB uint8, above its legend, which is half as high at most; alone where
    it is too narrow for one."""
    height, width = picture.shape[:2]
    letters = text_size((height, width))
    most = max(3, height // (2 * line_height(letters)))
    strip = legend_strip(tuple(entries), width, letters, most)
    return np.vstack([picture, strip]) if len(strip) else picture


def drawable(names: Sequence[str]) -> tuple[str, ...]:
    """The names of all classes; in place of one whose letters the font lacks, "class 3"."""
    return tuple(
        name if _letters() >= {*map(ord, name)} else f"class {place}"
        for place, name in enumerate(names)
    )


def line_height(letters: int) -> int:
    """Pixels from one line of a legend to the next."""
    return round(letters * 1.5)


@functools.lru_cache(maxsize=64)
def legend_strip(
    entries: tuple[Entry, ...], width: int, letters: int = SMALLEST, most_rows: int = 12
) -> np.ndarray:
    """A strip of names and colours, (h, `width`, 3) RGB uint8; h is 0 if nothing can be shown.

    Names that are too long are cut. Where `most_rows` are not enough, the last entry is "...".
    """
    if not entries or width < LEAST_WIDTH * letters:
        return np.zeros((0, width, 3), np.uint8)
    font = ImageFont.truetype(_font_file(), letters)
    line, box = line_height(letters), letters
    widest = int(max(font.getlength(name) for name, _ in entries)) + 2 * letters
    column = min(widest + letters // 2, MOST_WIDTH * letters, width)
    across = max(1, width // column)
    count = min(len(entries), across * most_rows)
    strip = Image.new("RGB", (width, -(-count // across) * line + letters // 2), PAPER)
    draw = ImageDraw.Draw(strip)
    for index, (name, color) in enumerate(entries[:count]):
        left, top = index % across * column + letters // 3, index // across * line + letters // 2
        if index == count - 1 and count < len(entries):
            draw.text((left, top + box / 2), "...", INK, font, anchor="lm")
            break
        draw.rectangle((left, top, left + box - 1, top + box - 1), tuple(color), INK)
        text = _fitted(name, column - 2 * letters, font)
        draw.text((left + box + letters // 3, top + box / 2), text, INK, font, anchor="lm")
    return np.asarray(strip)


def _fitted(name: str, width: float, font: ImageFont.FreeTypeFont) -> str:
    """`name`, its end replaced by ".." where it is wider than `width` pixels."""
    if font.getlength(name) <= width:
        return name
    while name and font.getlength(name + "..") > width:
        name = name[:-1]
    return name + ".."


def _font_file() -> str:
    return str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf")


@functools.cache
def _letters() -> frozenset[int]:
    """Code points that the font has."""
    return frozenset(FT2Font(_font_file()).get_charmap())
