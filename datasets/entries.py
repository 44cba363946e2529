"""The entries of a list, kept so that processes share them."""

from collections.abc import Sequence

import numpy as np

from .files import Entry


class EntryList(Sequence):
    """The entries of a list as one block of bytes.

    A list of tuples would be copied page by page into every loader process, by nothing but the
    counting of references.
    """

    def __init__(self, entries: Sequence[Entry]) -> None:
        rows = [f"{e.image}\0{e.label or ''}".encode() for e in entries]
        self._text = np.frombuffer(b"".join(rows), np.uint8)
        self._ends = np.cumsum([0, *map(len, rows)])
        self._lines = np.array([e.line for e in entries])
        self._labelled = bool(entries) and entries[0].label is not None
        first: dict[bytes, int] = {}
        self._first = np.array([first.setdefault(row, n) for n, row in enumerate(rows)])

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> Entry:
        if not -len(self) <= index < len(self):
            raise IndexError(f"entry {index} of {len(self)}")
        index %= len(self)
        text = self._text[self._ends[index] : self._ends[index + 1]].tobytes().decode()
        image, _, label = text.partition("\0")
        return Entry(image, label if self._labelled else None, int(self._lines[index]))

    def first(self, index: int) -> int:
        """The first entry with the files of entry `index`: it itself unless lines are repeated."""
        return int(self._first[index])
