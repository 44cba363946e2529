"""Text files that people write by hand."""

import codecs
import io
from pathlib import Path

from ..meta import DataError

_MARKS = (  # the longer ones first, of which the others are the beginning
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


def read_text(path: str | Path) -> str:
    """A text file in UTF-8 with lines that end in \\n, however they end in the file.

    Raises DataError where it is in another encoding, or no text.
    """
    data = Path(path).read_bytes()
    if name := _other_encoding(data):
        raise DataError(
            f"{path} is not a text file in UTF-8 but in {name}, as PowerShell and editors of "
            "Windows write; save it as UTF-8"
        )
    try:
        return io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig").read()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not a text file in UTF-8 ({error.reason}); save it as UTF-8"
        ) from None


def _other_encoding(data: bytes) -> str | None:
    """UTF-16 or UTF-32, by the mark at the beginning or by a zero byte in every Latin letter."""
    for mark, name in _MARKS:
        if data.startswith(mark):
            return name
    start = data[:4096]
    evens, odds = start[::2].count(0), start[1::2].count(0)
    half = len(start) // 2
    mostly, hardly = max(evens, odds) > 0.8 * half, min(evens, odds) < 0.2 * half
    return "UTF-16" if half and mostly and hardly else None
