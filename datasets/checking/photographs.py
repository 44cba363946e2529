"""What is lost or turned when a photograph is read, though nothing is wrong with the file."""

from typing import NamedTuple

import cv2
import numpy as np

from ..files import Header
from ..files.headers import further_pictures

TURNS = {
    2: "mirrored",
    3: "turned by 180 degrees",
    4: "upside down",
    5: "mirrored and turned by 90 degrees",
    6: "turned by 90 degrees to the right",
    7: "mirrored and turned by 90 degrees",
    8: "turned by 90 degrees to the left",
}
FEW_LEVELS = 128  # of 256
# Stray pixels: broken ones of a sensor, a stamp. Lamps at night take more of the levels.
STRAY = 1000  # one of so many pixels
STRAY_PIXELS = 4  # or so many in a small picture
STRAY_LEVELS = 16  # of 256, all that they take
PLAIN = ("JPEG", "MPO", "PNG", "WEBP", "BMP")  # kinds whose header says all about bands and bits


class Oddity(NamedTuple):
    """What may be meant so, but is worth a look.

    kind: a word that all oddities of this kind share.
    text: a sentence, or the end of one behind the file's name.
    """

    kind: str
    text: str


def photograph_oddities(data: bytes, header: Header | None) -> list[Oddity]:
    """What a photograph carries that reading it turns or drops, as ends of sentences.

    Args:
        data: the whole file.
    """
    found = []
    if header and header.orientation != 1:
        found.append(Oddity("orientation", _orientation(data, header)))
    if pages := further_pictures(header):
        found.append(Oddity("pages", f"{pages}; one file per picture"))
    jpeg = header is not None and header.kind in ("JPEG", "MPO")  # four bands are for printing
    plain = header and header.kind in PLAIN and header.bits <= 8 and header.bands in (1, 3)
    if jpeg or plain:
        return found
    stored = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if stored is None:
        return found
    channels = 1 if stored.ndim == 2 else stored.shape[2]
    bands = header.bands if header else channels
    has = f"has {bands} band{'s' if bands > 1 else ''} of"
    largest = _largest(stored[..., :3] if channels > 1 else stored)
    levels = (largest >> 8) + 1
    if stored.dtype == np.uint16 and levels <= FEW_LEVELS:
        text = (
            f"{has} 16 bits, of which {largest.bit_length()} are used; the upper 8 are read, which "
            f"keeps {levels} grey levels: scale it to 0..255 and save it as 8 bits"
        )
        found.append(Oddity("depth", text))
    if bands in (2, 4) and not _is_opaque(stored, channels):
        last = "second" if bands == 2 else "fourth"
        bits = header.bits if header else 8 * stored.dtype.itemsize  # OpenCV halves those of two
        text = (
            f"{has} {bits} bits; the {last} one (alpha or infrared) is dropped: networks here see "
            "three"
        )
        found.append(Oddity("bands", text))
    return found


def _largest(stored: np.ndarray) -> int:
    """The largest value of the picture, stray pixels left out."""
    if int(stored.max()) >> 8 < FEW_LEVELS:
        return int(stored.max())
    counts = np.bincount(stored.ravel())
    above = np.cumsum(counts[::-1])[::-1]  # pixels of this value or a larger one
    bands = 1 if stored.ndim == 2 else stored.shape[2]
    stray = min(max(STRAY_PIXELS * bands, stored.size // STRAY), stored.size - 1)
    largest = int(np.flatnonzero(above > stray)[-1])
    taken = np.unique(np.flatnonzero(counts[largest + 1 :]) + largest + 1 >> 8)
    return largest if len(taken) <= STRAY_LEVELS else int(stored.max())


def _orientation(data: bytes, header: Header) -> str:
    if _is_turned(data, header):
        return (
            f"carries EXIF orientation {header.orientation} and is read upright, "
            f"{TURNS[header.orientation]}; labels are read as stored and must fit the upright "
            "picture: store both upright"
        )
    return (
        f"carries orientation {header.orientation}, which viewers apply, but {header.kind} files "
        "are read as stored: store it upright, and its label too"
    )


def _is_turned(data: bytes, header: Header) -> bool:
    """Whether OpenCV applies the orientation, which depends on kind and version."""
    if header.kind == "TIFF":
        return True  # always, whatever the flags
    content = np.frombuffer(data, np.uint8)
    upright = cv2.imdecode(content, cv2.IMREAD_COLOR_RGB)
    stored = cv2.imdecode(content, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    return not np.array_equal(upright, stored)


def _is_opaque(stored: np.ndarray, channels: int) -> bool:
    return channels == 4 and bool((stored[..., 3] == np.iinfo(stored.dtype).max).all())
