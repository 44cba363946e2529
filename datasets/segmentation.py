"""Labelled images: a list file -> items for a batch."""

import os
from pathlib import Path

import numpy as np

from .cache import SceneCache, Source, stamp_of
from .entries import EntryList
from .files import (
    Entry,
    file_problem,
    find_list,
    orientation_of,
    read_image,
    read_label,
    read_list,
    root_problem,
)
from .meta import DataError, DatasetMeta
from .scenes import FIND_ALL, SceneDataset, Transform
from .transforms import Sample


class SegmentationDataset(SceneDataset):
    """The pairs of a list file.

    Args:
        root: DATASET.ROOT; images and labels lie under `meta.folder_under(root)`.
        list_file: relative to `root`, else to the repository's `data/`.
        meta: classes and label encodings.
        encoding: name of the label encoding; "" = the dataset's default.
        transform, need_boundary, cache, skip_unreadable: see SceneDataset.
        repeats: the list may name a pair several times.

    Raises:
        FileNotFoundError: no such list.
        DataError: bad lines in it (see `read_list`).
        ValueError: unknown encoding.
    """

    def __init__(
        self,
        root: str | Path,
        list_file: str | Path,
        meta: DatasetMeta,
        encoding: str = "",
        *,
        transform: Transform,
        need_boundary: bool = False,
        cache: SceneCache | None = None,
        skip_unreadable: bool = False,
        repeats: bool = False,
    ) -> None:
        super().__init__(
            meta, transform, need_boundary, cache=cache, skip_unreadable=skip_unreadable
        )
        self.repeats, self.encoding_is_named = repeats, bool(encoding)
        self.root, self.folder = Path(root), meta.folder_under(root)
        self.encoding = encoding or next(iter(meta.encodings))
        meta.encoding(self.encoding)
        self._identity = (
            f"{self.folder.resolve()} {meta.encoding(self.encoding)} {meta.ignore_label}"
        )
        self.list_path = find_list(root, list_file)
        self.entries = EntryList(self._read_entries())

    def _read_entries(self) -> list[Entry]:
        return read_list(self.list_path, repeats=self.repeats, folder=self.folder)

    @property
    def labelled(self) -> bool:
        """Whether the list names labels."""
        return self.entries[0].label is not None

    def __len__(self) -> int:
        return len(self.entries)

    def name(self, index: int) -> str:
        """The image path as the list writes it."""
        return self.entries[index].image

    def load(self, index: int) -> Sample:
        """Read and check one pair.

        Raises:
            DataError: an unreadable file, a label of another kind or size than it should be, or
                a label value that the encoding does not know. The sentence begins with list and
                line.
        """
        where = self.place(index)
        end = "" if self.skip_unreadable else f"; {FIND_ALL}"  # one of many sentences, or the last
        try:
            image = self.load_image(index)
            label = self.load_label(index) if self.labelled else None
        except DataError as error:
            raise DataError(f"{where}{error}{self.space_hint(index)}{end}") from None
        except OSError as error:
            raise DataError(
                f"{where}{self.name(index)} or its label cannot be read: {error}{end}"
            ) from None
        if label is not None and label.shape != image.shape[:2]:
            raise DataError(where + self.size_problem(index, image.shape[:2], label.shape) + end)
        return Sample(image, label)

    def label(self, index: int) -> np.ndarray:
        """The class indices of one pair without its image. Raises DataError as `load` does."""
        try:
            return self.load_label(index)
        except (DataError, OSError) as error:
            raise DataError(f"{self.place(index)}{error}; {FIND_ALL}") from None

    def place(self, index: int) -> str:
        """How a sentence about entry `index` begins: list and line."""
        return f"{self.list_path}:{self.entries[index].line}: "

    def source(self, index: int) -> Source:
        """Files and encoding; the stamp holds size and time of change of the files."""
        entry = self.entries[index]
        facts = []
        for file in filter(None, (entry.image, entry.label)):
            status = os.stat(self.folder / file)
            facts.append((status.st_size, status.st_mtime_ns))
        identity = f"{self._identity} {entry.image} {entry.label}"
        return Source(self.entries.first(index), identity, stamp_of(*facts))

    def load_image(self, index: int) -> np.ndarray:
        """The photograph of entry `index`, (H, W, 3) uint8 RGB. Raises DataError."""
        file = self.entries[index].image
        return read_image(self.folder / file, file)

    def load_label(self, index: int) -> np.ndarray:
        """The class indices of entry `index`, (H, W) uint8. Raises DataError."""
        return self.encode_label(index, self.label_values(index))

    def label_values(self, index: int) -> np.ndarray:
        """What the label file of entry `index` holds (see `read_label`). Raises DataError."""
        file, encoding = self.entries[index].label, self.meta.encoding(self.encoding)
        return read_label(self.folder / file, encoding, file, f"; {self._labels_hint}")

    def encode_label(self, index: int, values: np.ndarray) -> np.ndarray:
        """`label_values` -> class indices. Raises DataError for unknown values."""
        return self.meta.encode(values, self.encoding, self.entries[index].label)

    @property
    def _labels_hint(self) -> str:
        """What to do about a label of colours instead of values, or the reverse."""
        meta, accepted = self.meta, ", ".join(self.meta.encodings)
        wanted = meta.encoding(self.encoding).channels
        if any(scheme.channels != wanted for scheme in meta.encodings.values()):
            return f"DATASET.LABELS is {self.encoding}, accepted: {accepted}"
        if not meta.origin:
            kind = "values" if wanted == 1 else "colours"
            return f"{meta.name} is labelled by {kind} only (DATASET.LABELS accepts {accepted})"
        if wanted == 1:
            return (
                "labels in colours are declared as encoding: color, with their palette, in "
                f"{meta.origin}; if red, green and blue are alike, save one of them"
            )
        return (
            f"labels of values are declared as encoding: index, or values with their classes, in "
            f"{meta.origin}"
        )

    def folder_problem(self) -> str | None:
        """The sentence about a dataset's folder that is not there; None if it is."""
        if problem := root_problem(self.root):
            return problem
        if self.folder.is_dir():
            return None
        return (
            f"{self.folder} is not a folder; DATASET.ROOT is {self.root} and must hold "
            f"{self.meta.name}/ as data/README.md shows"
        )

    def size_problem(self, index: int, image: tuple[int, ...], label: tuple[int, ...]) -> str:
        """The sentence for sizes (height, width) that differ."""
        entry = self.entries[index]
        sentence = (
            f"{entry.label} is {label[0]}x{label[1]} but its image {entry.image} is "
            f"{image[0]}x{image[1]} (height x width); they must be equal"
        )
        if image == label[::-1]:
            for file in (entry.image, entry.label):
                orientation = orientation_of(self.folder / file)
                if orientation > 4:
                    sentence += (
                        f"; {file} carries EXIF orientation {orientation}: photographs are turned "
                        "upright, labels are read as stored and must be stored upright"
                    )
        return sentence

    def missing_files(self) -> list[str]:
        """One sentence for every listed file that is absent, not a file, or empty."""
        problems = []
        under = f" under {self.folder} (DATASET.ROOT={self.root})"
        for index, entry in enumerate(self.entries):
            for file in filter(None, (entry.image, entry.label)):
                problem = file_problem(self.folder / file, under)
                if problem:
                    problems.append(f"{self.place(index)}{file} {problem}{self.space_hint(index)}")
        return problems

    def space_hint(self, index: int) -> str:
        """What a line means whose names were cut at the wrong space, as the end of a sentence."""
        entry = self.entries[index]
        if entry.label is not None:
            whole = f"{entry.image} {entry.label}"
            if not (self.folder / entry.image).exists() and (self.folder / whole).is_file():
                return (
                    f"; there is {whole}: a name with spaces needs a TAB at the line's end, or "
                    "before its label"
                )
        elif not (self.folder / entry.image).exists():
            image, _, label = entry.image.partition(" ")
            if (self.folder / image).is_file() and label:
                return f"; there is {image}: the TAB stands between image and label"
        return ""
