"""Photographs and label files -> arrays."""

import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
from PIL import ExifTags, Image

from ..meta import DataError, IdEncoding, LabelEncoding
from .foreign import foreign_kind, lossy_kind
from .headers import (
    ERRORS,
    JPEG,
    LONGEST_SIDE,
    MOST_PIXELS,
    PNG,
    TIFF,
    Header,
    is_too_large,
    read_header,
)
from .paths import file_problem

LABEL_KINDS = ("PNG", "TIFF", "BMP", "PPM", "WEBP")
MOST_BANDS = 4
_ACCEPTED = f"a photograph has 1, 3 or {MOST_BANDS} bands of 8 or 16 bits"
_READABLE = "photographs are JPEG, PNG, WebP, TIFF or BMP files"
_LABELS = "labels must be PNGs of 8 bits"
_WHOLE_NUMBERS = (JPEG, PNG, b"RIFF", b"BM", b"GIF8")  # of kinds that hold nothing else
_TO_RGB = {3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGB}

# What OpenCV prints about a file it cannot read is said in a sentence.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def read_image(
    path: str | Path, source: str | None = None, most_pixels: int | None = None
) -> np.ndarray:
    """Decode a photograph to (H, W, 3) uint8 RGB, upright as its EXIF orientation says (not AVIF).

    Of 16 bits per value the upper 8 are kept, of four bands the first three.

    Args:
        most_pixels: for files of strangers: what has more is refused by its header, before it is
            decoded, and so is a file whose header cannot be read. None: what OpenCV reads.

    Raises DataError naming `source` (default: the path) for missing, empty, cut or broken files,
    and for those that are no photograph of up to 16 bits.
    """
    source = source or str(path)
    data = _read_bytes(Path(path), source)
    if most_pixels is not None:
        _check_pixels(data, source, most_pixels)
    _check_whole(data, source)
    if data.startswith(TIFF):  # OpenCV decodes some of these to nonsense
        _check_photograph(read_header(data), source)
    picture = _decode_photograph(data, source)
    if picture is None:
        _check_photograph(read_header(data), source)
        raise DataError(_not_decoded(data, source, _READABLE))
    return picture


def read_label(
    path: str | Path, encoding: LabelEncoding, source: str | None = None, hint: str = ""
) -> np.ndarray:
    """Decode a label file without changing its values; no orientation is applied.

    Returns (H, W) uint8 values for an IdEncoding (also from files with a palette or 1, 2, 4 bits
    per pixel), (H, W, 3) uint8 RGB for a ColorEncoding. `hint` ends the sentence about a label of
    the other kind.

    Raises:
        DataError: as `read_image`; a format that does not keep values, whatever the name says;
            more than 8 bits; colours where values are expected or the reverse.
    """
    source = source or str(path)
    data = read_whole(Path(path), source)
    header = read_header(data)
    lossy = lossy_kind(data, header)
    if lossy:
        raise DataError(f"{source} is {lossy}, which does not keep label values; {_LABELS}")
    if header is None:
        raise DataError(_not_decoded(data, source, _LABELS))
    _check_label(header, source)
    accepted = ("1", "L", "P") if isinstance(encoding, IdEncoding) else ("P", "RGB", "RGBA")
    if header.mode not in ("", *accepted):
        raise DataError(_wrong_mode(header.mode, source, hint))
    plain = header.kind == "PNG" and header.bits == 8 and not header.transparent
    if plain and header.mode in ("L", "RGB", "RGBA"):  # OpenCV is faster at these
        label = _decode(data, cv2.IMREAD_UNCHANGED)
        if label is None:
            raise DataError(_not_decoded(data, source, _LABELS))
        return label if label.ndim == 2 else cv2.cvtColor(label, _TO_RGB[label.shape[2]])
    return _decode_label(data, header, accepted, source, hint)


def _decode_label(
    data: bytes, header: Header, accepted: tuple[str, ...], source: str, hint: str
) -> np.ndarray:
    """By Pillow, which keeps the indices of a palette. `accepted` are its modes."""
    try:
        with Image.open(io.BytesIO(data), formats=LABEL_KINDS) as picture:
            mode = picture.mode
            if mode not in accepted:
                raise DataError(_wrong_mode(mode, source, hint))
            if header.orientation != 1 and header.kind == "TIFF":  # Pillow would turn it
                picture.getexif()[ExifTags.Base.Orientation] = 1
                picture = picture.copy()  # whose size is that of the stored pixels
            label = np.asarray(picture.convert("RGB") if "RGB" in accepted else picture)
    except DataError:
        raise
    except ERRORS:
        raise DataError(_not_decoded(data, source, _LABELS)) from None
    if mode == "L" and header.bits in (2, 4):  # stretched to 0..255
        return label // (255 // (2**header.bits - 1))
    return label.astype(np.uint8)


def _wrong_mode(mode: str, source: str, hint: str) -> str:
    """The sentence for a label of Pillow's `mode` that does not suit the encoding."""
    if mode in ("LA", "PA"):
        return f"{source} has an alpha channel; save it as one channel of label values"
    bands = Image.getmodebands(mode)
    if bands == 1:
        return f"{source} has one channel (label values) where RGB label colours are expected{hint}"
    colors = {"RGB": "colours", "RGBA": "colours and alpha"}.get(mode, mode)
    return (
        f"{source} has {bands} channels ({colors}) where one channel of label values is "
        f"expected{hint}"
    )


def _check_label(header: Header, source: str) -> None:
    if header.real:
        raise DataError(f"{source} has floating-point values; labels are whole numbers of 8 bits")
    if header.bits > 8:
        raise DataError(
            f"{source} has {header.bits} bits per value; labels have 8, save it as such"
        )
    if header.kind == "PPM" and header.bits < 8:
        raise DataError(f"{source} is a PNM whose largest value is not 255; {_LABELS}")
    if header.bands > MOST_BANDS or (header.kind == "TIFF" and header.bands == 2):
        raise DataError(f"{source} has {header.bands} bands; a label has one, or three of a colour")
    if header.frames > 1:
        raise DataError(f"{source} has {header.frames} frames; a label is one picture")
    if is_too_large(header.size):
        raise DataError(_too_large(header.size, source))


def _check_photograph(header: Header | None, source: str) -> None:
    """Raise DataError if the header says why OpenCV makes no photograph of the file."""
    if header is None:
        return
    if header.real:
        raise DataError(f"{source} has floating-point values; {_ACCEPTED}")
    if header.bands > MOST_BANDS:
        raise DataError(f"{source} has {header.bands} bands; {_ACCEPTED}")
    if header.bits > 16:
        raise DataError(f"{source} has {header.bits} bits per value; {_ACCEPTED}")
    if is_too_large(header.size):
        raise DataError(_too_large(header.size, source))


def _decode_photograph(data: bytes, source: str) -> np.ndarray | None:
    """(H, W, 3) uint8 RGB; None where OpenCV cannot. Raises DataError for other numbers."""
    if data.startswith(_WHOLE_NUMBERS) or data[4:8] == b"ftyp":
        return _decode(data, cv2.IMREAD_COLOR_RGB)
    # Asked for 8 bits, OpenCV scales floating-point and signed values to them without a word.
    picture = _decode(data, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_ANYDEPTH)
    if picture is None or picture.dtype == np.uint8:
        return picture
    if picture.dtype == np.uint16:
        return _decode(data, cv2.IMREAD_COLOR_RGB)
    if picture.dtype.kind == "f":
        raise DataError(f"{source} has floating-point values; {_ACCEPTED}")
    raise DataError(f"{source} has values of the type {picture.dtype}; {_ACCEPTED}, unsigned")


def _decode(data: bytes, flags: int) -> np.ndarray | None:
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        return None


def _too_large(size: tuple[int, int], source: str) -> str:
    height, width = size
    if height * width > MOST_PIXELS:
        return (
            f"{source} has {height}x{width} = {height * width} pixels, more than the {MOST_PIXELS} "
            "that OpenCV reads; cut it into tiles, or raise OPENCV_IO_MAX_IMAGE_PIXELS"
        )
    return (
        f"{source} is {height}x{width} (height x width), and OpenCV reads sides of at most "
        f"{LONGEST_SIDE}; cut it into tiles"
    )


def _not_decoded(data: bytes, source: str, accepted: str) -> str:
    kind = foreign_kind(data)
    if kind:
        pixels = ", a value or colour per pixel" if accepted == _LABELS else ""
        return f"{source} is {kind}; {accepted}{pixels}"
    return f"{source} cannot be decoded; it is damaged or not an image"


def _check_pixels(data: bytes, source: str, most: int) -> None:
    header = read_header(data)
    if header is None:
        raise DataError(_not_decoded(data, source, _READABLE))
    height, width = header.size
    if height * width > most:
        raise DataError(
            f"{source} has {height}x{width} = {height * width} pixels; at most {most} are read"
        )


def read_whole(path: Path, source: str) -> bytes:
    """All bytes of a file. Raises DataError where it cannot be read, or is a cut PNG or JPEG."""
    data = _read_bytes(path, source)
    _check_whole(data, source)
    return data


def _read_bytes(path: Path, source: str) -> bytes:
    problem = file_problem(path)
    if problem:
        raise DataError(f"{source} {problem}")
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{source} cannot be read ({error.strerror})") from None


def _check_whole(data: bytes, source: str) -> None:
    if data.startswith(PNG):
        _check_png(data, source)
    elif data.startswith(JPEG):
        _check_jpeg(data, source)


def _check_png(data: bytes, source: str) -> None:
    # Decoders return a partly filled picture, or print to stderr; the chunks tell it beforehand.
    chunks = _png_chunks(data)
    if chunks is None:
        raise DataError(f"{source} is a truncated PNG (it ends after {len(data)} bytes)")
    if chunks[0][0] != b"IHDR" or chunks[0][2] - chunks[0][1] != 13:
        raise DataError(f"{source} is a damaged PNG (it does not begin with its header)")
    for kind, first, end in chunks:
        if zlib.crc32(data[first - 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            raise DataError(
                f"{source} is a damaged PNG (wrong checksum of {kind.decode('latin1')})"
            )
    width, height = struct.unpack_from(">II", data, 16)
    if is_too_large((height, width)):
        raise DataError(_too_large((height, width), source))


def _png_chunks(data: bytes) -> list[tuple[bytes, int, int]] | None:
    """(type, first, end of the content) of every chunk; None where the file stops too early."""
    chunks, position = [], len(PNG)
    while position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        first = position + 8
        position = first + length + 4
        if position > len(data):
            return None
        chunks.append((data[first - 4 : first], first, first + length))
        if chunks[-1][0] == b"IEND":
            return chunks
    return None


def _check_jpeg(data: bytes, source: str) -> None:
    # Walk the header's segments to the first scan: a thumbnail inside them has its own end mark.
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        if data[position + 1] == 0xFF:  # fill byte
            position += 1
        elif data[position + 1] == 0xDA:
            break
        else:
            position += 2 + struct.unpack_from(">H", data, position + 2)[0]
    if data.find(b"\xff\xd9", position) < 0:
        raise DataError(f"{source} is a truncated JPEG (it ends after {len(data)} bytes)")
