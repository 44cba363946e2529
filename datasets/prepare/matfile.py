"""One numeric matrix out of a MATLAB 5 file (.mat), as COCO-Stuff 10K and SBD store labels.

Only numbers and structures of numbers are read; nothing in a file is run. Not scipy's reader, which
a few changed bytes make crash the process or take many gigabytes of memory.
"""

import struct
import zlib
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..meta import DataError

MOST_BYTES = 1 << 28  # of an unpacked element; a label has a few megabytes

_NUMBERS = {
    1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8",
}  # fmt: skip
_MATRIX, _COMPRESSED = 14, 15
_STRUCT, _NUMERIC = 2, range(6, 16)  # array classes


def read_matrix(path: str | Path, *names: str) -> np.ndarray:
    """The 2-D matrix called `names[0]`, or the field `names[1]` of the structure of that name.

    Raises:
        DataError: not a MATLAB 5 file, damaged, or without such a matrix of numbers.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from None
    if len(data) < 128 or data[126:128] not in (b"IM", b"MI"):
        raise DataError(f"{path} is not a MATLAB 5 file (.mat)")
    if data.startswith(b"MATLAB 7.3"):
        raise DataError(f"{path} is a MATLAB 7.3 file; save it as version 7 (save -v7)")
    reader = _Reader("<" if data[126:128] == b"IM" else ">")
    try:
        for kind, content in reader.elements(data[128:]):
            if kind == _COMPRESSED:
                kind, content = next(reader.elements(_inflate(content)))
            if kind == _MATRIX:
                name, matrix = reader.matrix(content, names[1:])
                if name == names[0] and matrix is not None:
                    return matrix
    except (struct.error, zlib.error, ValueError, LookupError, ArithmeticError, StopIteration) as e:
        raise DataError(f"{path} is damaged ({e or 'it ends too early'})") from None
    raise DataError(f"{path} holds no matrix {'.'.join(names)}")


def _inflate(content: bytes) -> bytes:
    unpacker = zlib.decompressobj()
    data = unpacker.decompress(content, MOST_BYTES)
    if unpacker.unconsumed_tail:
        raise InputError(f"an element is larger than {MOST_BYTES} bytes")
    return data


class _Reader:
    """Elements of one byte order."""

    def __init__(self, order: str) -> None:
        self.order = order

    def elements(self, data: bytes):
        """(type, content) of every element in `data`."""
        position = 0
        while position + 8 <= len(data):
            kind, length = struct.unpack_from(f"{self.order}II", data, position)
            if kind >> 16:  # a small element: length and type share a word, the content follows
                yield kind & 0xFFFF, data[position + 4 : position + 4 + (kind >> 16)]
                position += 8
                continue
            first = position + 8
            if first + length > len(data):
                raise InputError("it ends too early")
            yield kind, data[first : first + length]
            position = first + length
            if kind != _COMPRESSED:
                position += -length % 8

    def matrix(self, content: bytes, fields: tuple[str, ...]) -> tuple[str, np.ndarray | None]:
        """Name and values of a matrix, or of the field of a structure; None if it has none."""
        parts = self.elements(content)
        flags, shape, name = [next(parts)[1] for _ in range(3)]
        kind = struct.unpack_from(f"{self.order}I", flags)[0] & 0xFF
        text = name.decode("latin1")
        if fields and kind == _STRUCT:
            (width,) = struct.unpack(f"{self.order}i", next(parts)[1])
            labels = next(parts)[1]
            count = len(labels) // width
            for index in range(count):
                label = labels[index * width : (index + 1) * width].split(b"\0")[0]
                _, value = next(parts)
                if label.decode("latin1") == fields[0]:
                    return text, self.matrix(value, fields[1:])[1]
            return text, None
        if fields or kind not in _NUMERIC:
            return text, None
        rows, columns = struct.unpack(f"{self.order}2i", shape)
        stored, values = next(parts)
        numbers = np.frombuffer(values, np.dtype(_NUMBERS[stored]).newbyteorder(self.order))
        return text, numbers.reshape((rows, columns), order="F")
