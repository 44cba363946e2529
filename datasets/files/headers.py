"""What a picture file says about itself: kind, size, bands, depth, orientation.

Pillow reads the headers. Nothing is decoded here.
"""

import io
import os
import struct
import warnings
import zlib
from pathlib import Path
from typing import NamedTuple

from PIL import Image, TiffImagePlugin

# OpenCV's limits; its variable raises the first.
_LIMIT = os.environ.get("OPENCV_IO_MAX_IMAGE_PIXELS", "")
MOST_PIXELS = int(_LIMIT) if _LIMIT.isdecimal() else 1 << 30
LONGEST_SIDE = 1_000_000

# Pillow's own limit is lower than OpenCV's, and a header costs nothing.
Image.MAX_IMAGE_PIXELS = None
warnings.filterwarnings("ignore", module=r"PIL\.")  # what is wrong is said in a sentence

PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
KINDS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "PPM", "GIF", "JPEG2000", "AVIF")
PAGED = ("TIFF", "PNG", "WEBP", "GIF")  # kinds whose further pictures are no previews
# What Pillow raises over files that are damaged or made to do harm.
ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    ArithmeticError,
    LookupError,
    AttributeError,
    TypeError,
    EOFError,
    struct.error,
    zlib.error,
)

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _ORIENTATION = 256, 257, 258, 259, 274
_BANDS, _FORMAT = 277, 339
_KIND = 254
_FLOAT = 3
_BESIDE = 1 | 4  # a smaller copy of another page, or its mask
MOST_PAGES = 1000  # that are counted


class Header(NamedTuple):
    """What the header says.

    kind: the name of the format, as Pillow calls it.
    size: (height, width) as stored, before any orientation.
    mode: Pillow's word for the kind of pixels; "" for TIFF.
    bands: values per pixel; a palette is one.
    bits: per value.
    real: whether values are floating-point numbers.
    orientation: of EXIF, 1..8; 1 = upright.
    frames: pictures in the file, a TIFF's smaller copies and masks not counted.
    compression: TIFF's number for it; 1 elsewhere.
    transparent: whether one gray or colour is declared to be so.
    """

    kind: str
    size: tuple[int, int]
    mode: str
    bands: int
    bits: int
    real: bool = False
    orientation: int = 1
    frames: int = 1
    compression: int = 1
    transparent: bool = False


def read_header(data: bytes) -> Header | None:
    """The header of a whole file; None where Pillow knows no such format or cannot read it."""
    try:
        if data.startswith(TIFF):
            return _tiff(data)
        with Image.open(io.BytesIO(data), formats=KINDS) as picture:
            return Header(
                picture.format or "",
                picture.size[::-1],
                picture.mode,
                len(picture.getbands()),
                _bits(picture),
                orientation=_orientation(picture, data),
                frames=getattr(picture, "n_frames", 1),
                transparent="transparency" in picture.info,
            )
    except ERRORS:
        return None


def orientation_of(path: str | Path) -> int:
    """The EXIF orientation that a file carries, 1..8; 1 where there is none to be read."""
    try:
        header = read_header(Path(path).read_bytes())
    except OSError:
        return 1
    return header.orientation if header else 1


def is_too_large(size: tuple[int, int]) -> bool:
    """Whether a picture of `size` (height, width) is beyond what OpenCV reads."""
    return size[0] * size[1] > MOST_PIXELS or max(size) > LONGEST_SIDE


def further_pictures(header: Header | None) -> str:
    """What a photograph holds beside the one that is read, as the end of a sentence, or ""."""
    if header is None or header.frames < 2 or header.kind not in PAGED:
        return ""
    pages = "pages" if header.kind == "TIFF" else "frames"
    return f"has {header.frames} {pages}, of which the first is read"


def _tiff(data: bytes) -> Header:
    # Pillow has no mode for many a TIFF, but reads the tags of all.
    tags = TiffImagePlugin.ImageFileDirectory_v2(data[: 16 if data[2:3] == b"+" else 8])
    stream = io.BytesIO(data)
    stream.seek(tags.next)
    tags.load(stream)
    bits = tags.get(_BITS, (1,))
    turned = int(tags.get(_ORIENTATION, 1))
    header = Header(
        "TIFF",
        (int(tags[_HEIGHT]), int(tags[_WIDTH])),
        "",
        int(tags.get(_BANDS, len(bits))),
        max(bits),
        _FLOAT in tags.get(_FORMAT, (1,)),
        turned if 1 <= turned <= 8 else 1,
        compression=int(tags.get(_COMPRESSION, 1)),
    )
    return header._replace(frames=1 + _further_pages(tags, stream))


def _further_pages(tags: TiffImagePlugin.ImageFileDirectory_v2, stream: io.BytesIO) -> int:
    """Pages behind the first one, whose tags were just read."""
    count, seen = 0, set()
    while tags.next and tags.next not in seen and len(seen) < MOST_PAGES:
        seen.add(tags.next)
        try:
            stream.seek(tags.next)
            tags.load(stream)
            count += not int(tags.get(_KIND, 0)) & _BESIDE and _WIDTH in tags
        except ERRORS:
            break
    return count


def _bits(picture: Image.Image) -> int:
    """Bits per value as stored; a mode does not say it."""
    how = picture.tile[0].args if picture.tile else ""
    if picture.format == "PPM" and isinstance(how, tuple):
        return int(how[1]).bit_length()  # the largest value
    raw = how if isinstance(how, str) else str(how[0]) if how else ""
    mode, _, depth = raw.partition(";")
    if depth.rstrip("BLNIR").isdecimal():
        return int(depth.rstrip("BLNIR"))
    return {"1": 1, "I": 32, "F": 32}.get(mode or picture.mode, 8)


def _orientation(picture: Image.Image, data: bytes) -> int:
    # A PNG's own getexif decodes the whole picture to find a chunk behind it.
    late = picture.format == "PNG" and "exif" not in picture.info and b"eXIf" in data
    try:
        exif = picture.getexif() if late else Image.Image.getexif(picture)
    except ERRORS:
        return 1
    value = exif.get(_ORIENTATION, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1
