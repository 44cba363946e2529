"""List files and pixels from disk; whatever is wrong with them is said with the file's name."""

import errno
import functools
import os
import stat
import struct
import unicodedata
import zlib
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from .meta import DataError, IdEncoding, LabelEncoding

REPOSITORY_DATA = Path(__file__).resolve().parent.parent / "data"

_GRAY_ALPHA = 4  # PNG colour type
_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"


class Entry(NamedTuple):
    """One line of a list file; paths are as written there, relative to the dataset's folder."""

    image: str
    label: str | None
    line: int


def find_list(root: str | Path, list_file: str | Path) -> Path:
    """The list file under `root` (DATASET.ROOT), else under the repository's own `data/`.

    Raises FileNotFoundError that names both places.
    """
    places = [Path(root) / list_file, REPOSITORY_DATA / list_file]
    for place in places:
        if place.is_file():
            return place
    if places[0].resolve() == places[1].resolve():
        raise FileNotFoundError(f"list file {places[0]} does not exist")
    raise FileNotFoundError(f"list file {list_file} found neither as {places[0]} nor {places[1]}")


def read_list(path: str | Path) -> list[Entry]:
    """Read lines `image<TAB or spaces>label` or only `image`.

    Empty lines and lines that start with # are skipped. With a TAB in the line, names may contain
    spaces. All lines have a label or none has.

    Raises:
        DataError: not UTF-8, no entry, too many columns, an image listed twice, a path that
            leaves the dataset's folder, labels only here and there.
    """
    entries, problems = scan_list(path)
    if problems:
        more = f" (and {len(problems) - 1} more of its lines are bad)" if len(problems) > 1 else ""
        raise DataError(problems[0] + more)
    return entries


def scan_list(path: str | Path) -> tuple[list[Entry], list[str]]:
    """The good lines of a list file, as `read_list` takes them, and a sentence per bad one.

    Raises DataError where the file is not text in UTF-8.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not a text file in UTF-8 ({error.reason})") from None
    entries: list[Entry] = []
    problems: list[str] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        try:
            entry = _parse_line(line, f"{path}:{number}", number)
            _check_entry(entry, f"{path}:{number}", seen, entries[0] if entries else entry)
        except DataError as error:
            problems.append(str(error))
        else:
            seen[entry.image] = number
            entries.append(entry)
    if not entries and not problems:
        problems.append(f"{path} names no image; lines are image<TAB>label")
    return entries, problems


def _check_entry(entry: Entry, where: str, seen: dict[str, int], first: Entry) -> None:
    if entry.image in seen:
        raise DataError(f"{where}: {entry.image} stands already in line {seen[entry.image]}")
    if (entry.label is None) != (first.label is None):
        raise DataError(
            f"{where}: line {first.line} has {'no label' if entry.label else 'a label'} and this "
            f"line has {'one' if entry.label else 'none'}; a list has labels everywhere or nowhere"
        )


def _parse_line(line: str, where: str, number: int) -> Entry:
    fields = [field.strip() for field in line.split("\t" if "\t" in line else None)]
    fields = [field for field in fields if field]
    if len(fields) > 2:
        raise DataError(
            f"{where}: {len(fields)} columns; a line is image<TAB>label "
            f"(names with spaces need the TAB)"
        )
    for field in fields:
        if "\0" in field:
            raise DataError(f"{where}: a name with a zero byte; lists are UTF-8 text")
        absolute = Path(field).is_absolute()
        if absolute or ".." in Path(field).parts:
            how = " (it is an absolute path)" if absolute else ""
            raise DataError(
                f"{where}: {field} leaves the dataset's folder{how}; paths are relative to it"
            )
    return Entry(fields[0], fields[1] if len(fields) == 2 else None, number)


def read_image(path: str | Path, source: str | None = None) -> np.ndarray:
    """Decode a photograph to (H, W, 3) uint8 RGB.

    Raises DataError naming `source` (default: the path) for missing, empty, cut or broken files.
    """
    source = source or str(path)
    return _decode(_read_whole(Path(path), source), cv2.IMREAD_COLOR_RGB, source)


def read_label(
    path: str | Path, encoding: LabelEncoding, source: str | None = None, hint: str = ""
) -> np.ndarray:
    """Decode a label file without changing its values.

    Returns (H, W) uint8 values for an IdEncoding (also from PNGs with a palette or 1, 2, 4 bits
    per pixel), (H, W, 3) uint8 RGB for a ColorEncoding. `hint` ends the sentence about a label of
    the other kind.

    Raises:
        DataError: as `read_image`; a JPEG; more than 8 bits; colours where values are expected
            or the reverse.
    """
    source = source or str(path)
    data = _read_whole(Path(path), source)
    if data.startswith(_JPEG):
        raise DataError(
            f"{source} is a JPEG, which does not keep label values; labels must be PNGs"
        )
    if isinstance(encoding, IdEncoding):
        return _read_values(data, source, hint)
    label = _decode(data, cv2.IMREAD_UNCHANGED, source)
    _require_8_bits(label, source)
    if label.ndim == 2:
        raise DataError(
            f"{source} has one channel (label values) where RGB label colours are expected{hint}"
        )
    return cv2.cvtColor(label, cv2.COLOR_BGR2RGB if label.shape[2] == 3 else cv2.COLOR_BGRA2RGB)


def _read_values(data: bytes, source: str, hint: str) -> np.ndarray:
    depth = 8
    if data.startswith(_PNG):
        depth, data = data[24], _palette_as_gray(data)
    label = _decode(data, cv2.IMREAD_UNCHANGED, source)
    _require_8_bits(label, source)
    if data.startswith(_PNG) and data[25] == _GRAY_ALPHA:
        raise DataError(f"{source} has an alpha channel; save it as one channel of label values")
    if label.ndim == 3:
        colors = "colours" if label.shape[2] == 3 else "colours and alpha"
        raise DataError(
            f"{source} has {label.shape[2]} channels ({colors}) where one channel of label values "
            f"is expected{hint}"
        )
    # Decoders stretch 1, 2 and 4 bits to 0..255.
    return label // (255 // (2**depth - 1)) if depth < 8 else label


def _require_8_bits(label: np.ndarray, source: str) -> None:
    if label.dtype != np.uint8:
        bits = label.dtype.itemsize * 8
        raise DataError(f"{source} has {bits} bits per value; labels have 8, save it as such")


def file_problem(path: Path, under: str = "") -> str | None:
    """Why `path` cannot be read, as the end of a sentence; None if it is a file with content.

    `under` follows "does not exist".
    """
    try:
        status = path.stat()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return "is a symbolic link that leads back to itself"
        if path.is_symlink():
            return f"is a symbolic link to {os.readlink(path)}, which does not exist"
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return f"does not exist{under}{_near_name(path)}"
        return f"cannot be read ({error.strerror})"
    if stat.S_ISREG(status.st_mode):
        return None if status.st_size else "is empty (0 bytes)"
    return "is a folder, not a file" if stat.S_ISDIR(status.st_mode) else "is not a file"


def _near_name(path: Path) -> str:
    """A hint at a file whose name only looks the same."""
    try:
        names = _folded(str(path.parent), path.parent.stat().st_mtime_ns)
    except OSError:
        return ""
    near = names.get(_fold(path.name))
    if near is None:
        return ""
    same = unicodedata.normalize("NFC", near) == unicodedata.normalize("NFC", path.name)
    how = "other Unicode code points" if same else "upper and lower case differ"
    return f"; there is {near} ({how})"


@functools.lru_cache(maxsize=64)
def _folded(folder: str, changed: int) -> dict[str, str]:
    return {_fold(name): name for name in sorted(os.listdir(folder))}


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _read_whole(path: Path, source: str) -> bytes:
    problem = file_problem(path)
    if problem:
        raise DataError(f"{source} {problem}")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{source} cannot be read ({error.strerror})") from None
    if data.startswith(_PNG):
        _check_png(data, source)
    elif data.startswith(_JPEG):
        _check_jpeg(data, source)
    return data


def _decode(data: bytes, flags: int, source: str) -> np.ndarray:
    try:
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        picture = None
    if picture is None:
        raise DataError(f"{source} cannot be decoded; it is damaged or not an image")
    return picture


def _png_chunks(data: bytes) -> list[tuple[bytes, int, int]] | None:
    """(type, first, end of the content) of every chunk; None where the file stops too early."""
    chunks, position = [], len(_PNG)
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


def _palette_as_gray(data: bytes) -> bytes:
    """Rename a palette PNG to a grayscale one, so that decoders return its indices, not colours."""
    if data[25] != 3:
        return data
    header = data[16:25] + b"\x00" + data[26:29]
    parts = [_PNG]
    for kind, first, end in _png_chunks(data) or ():
        if kind == b"IHDR":
            parts.append(_chunk(kind, header))
        elif kind in (b"IDAT", b"IEND"):
            parts.append(data[first - 8 : end + 4])
    return b"".join(parts)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )
