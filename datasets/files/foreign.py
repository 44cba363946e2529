"""What a file is that is no picture, or none that keeps label values."""

import struct

from .headers import JPEG, TIFF, Header

# Beginnings of files, and what they are.
_OTHERS = (
    (b"\x93NUMPY", "a NumPy array (.npy)"),
    (b"PK\x03\x04", "a ZIP archive, as .npz files are too"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"MATLAB 5.0", "a MATLAB file (.mat)"),
    (b"\x1f\x8b", "a gzip file"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
    (b"%PDF", "a PDF"),
    (b"\x80\x04", "a Python pickle"),
    (b"8BPS", "a Photoshop file"),
    (b"v/1\x01", "an OpenEXR file"),
    (
        b"version https://git-lfs",
        "a Git LFS pointer (git lfs pull fetches the file)",
    ),
)
_TEXTS = (
    (b"<svg", "an SVG drawing"),
    (b"<!doctype html", "an HTML page"),
    (b"<html", "an HTML page"),
)
MEDIA = "a video or another media file"
_JPEG_2000 = (b"\x00\x00\x00\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")
_JPEG_XL = (b"\x00\x00\x00\x0cJXL \r\n\x87\n", b"\xff\x0a")
_LOSSLESS_TIFF = (1, 2, 3, 4, 5, 8, 32773, 32946, 34925, 50000)  # numbers of TIFF's compressions
_JPEG_IN_TIFF = (6, 7)


def lossy_kind(data: bytes, header: Header | None) -> str | None:
    """What a file is whose format does not keep label values, "a JPEG" for example; else None.

    The signature decides, not the name. JPEG 2000, JPEG XL and AVIF can be lossless, but seldom
    are, and do not say it.
    """
    if data.startswith(JPEG):
        return "a JPEG"
    if data.startswith(_JPEG_2000):
        return "a JPEG 2000"
    if data.startswith(_JPEG_XL):
        return "a JPEG XL"
    if data[4:8] == b"ftyp":
        return _of_brand(data)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return None if b"VP8L" in _riff_chunks(data) else "a lossy or animated WebP"
    if data.startswith(b"GIF8"):
        return "a GIF (whose writers renumber colours)"
    if data.startswith(TIFF) and header and header.compression not in _LOSSLESS_TIFF:
        jpeg = header.compression in _JPEG_IN_TIFF
        how = "JPEG compression" if jpeg else f"compression {header.compression}"
        return f"a TIFF with {how}"
    return None


def foreign_kind(data: bytes) -> str | None:
    """What a file is that OpenCV does not read: "a NumPy array (.npy)" for example; else None."""
    for start, name in _OTHERS:
        if data.startswith(start):
            return name
    if data.startswith(_JPEG_XL):
        return "a JPEG XL"
    if data[4:8] == b"ftyp":
        return _of_brand(data)
    return _of_text(data[:4096])


def _of_text(start: bytes) -> str | None:
    try:
        text = start.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.start < len(start) - 3:  # not just a character cut in two
            return None
        text = start[: error.start].decode("utf-8-sig")
    if not text.strip() or not all(letter.isprintable() or letter.isspace() for letter in text):
        return None
    lower = text.strip().lower().encode()
    for tag, name in _TEXTS:
        if lower.startswith(tag) or (lower.startswith(b"<?xml") and tag in lower):
            return name
    if lower.startswith((b"<?xml", b"<annotation")):
        return "an XML file"
    return "JSON" if lower[:1] in (b"{", b"[") else "a text file"


def _of_brand(data: bytes) -> str | None:
    """The format of an ISO media file, by the brands in its first box."""
    brands = data[8 : struct.unpack_from(">I", data)[0]][:64]
    if b"avif" in brands or b"avis" in brands:
        return "an AVIF"
    if any(brand in brands for brand in (b"hei", b"hev", b"mif1", b"msf1")):
        return "a HEIC"
    return MEDIA


def _riff_chunks(data: bytes) -> list[bytes]:
    """The names of the chunks of a WebP file, those inside of its frames left out."""
    names, position = [], 12
    while position + 8 <= len(data):
        names.append(data[position : position + 4])
        length = struct.unpack_from("<I", data, position + 4)[0]
        position += 8 + length + length % 2
    return names
