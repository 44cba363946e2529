"""Labelled images: a list file -> items for a batch."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from .cache import SceneCache, Source, stamp_of
from .files import Entry, file_problem, find_list, read_image, read_label, read_list
from .meta import DataError, DatasetMeta
from .sampler import Draw, substitute
from .transforms import Sample, TrainTransform, check_crop

Transform = Callable[[Sample, np.random.Generator], Sample]

MOST_SUBSTITUTES = 16  # unreadable scenes in a row before a sample gives up


class SceneDataset(Dataset):
    """What every dataset shares: scene -> transform -> item.

    A subclass gives `__len__`, `load(index)` and `name(index)`, and `source(index)` where its
    scenes can change.

    Args:
        meta: classes.
        transform: TrainTransform, EvalTransform or the like.
        need_boundary: items carry the boundary target, which the transform has to make.
    """

    labelled = True  # whether scenes have labels
    cache: SceneCache | None = None  # of decoded scenes
    skip_unreadable = False  # take another scene for one that cannot be read, and say so

    def __init__(
        self, meta: DatasetMeta, transform: Transform, need_boundary: bool = False
    ) -> None:
        self.meta, self.transform, self.need_boundary = meta, transform, need_boundary

    def __len__(self) -> int:
        raise NotImplementedError(f"{type(self).__name__} defines no __len__")

    def load(self, index: int) -> Sample:
        """The untransformed scene: RGB image and class indices, uint8."""
        raise NotImplementedError(f"{type(self).__name__} defines no load")

    def name(self, index: int) -> str:
        """What identifies scene `index`, for example its image path."""
        raise NotImplementedError(f"{type(self).__name__} defines no name")

    def source(self, index: int) -> Source:
        """What scene `index` is made of, for a cache. Raises OSError where a file is gone."""
        return Source(index, f"{self.meta.name} {self.name(index)}", stamp_of())

    def scene(self, index: int) -> Sample:
        """The untransformed scene, from the cache where it is there; may be read-only."""
        if self.cache is None:
            return self.load(index)
        try:
            source = self.source(index)
        except OSError:
            return self.load(index)  # says what is wrong with the file
        scene = self.cache.get(source)
        if scene is None:
            scene = self.load(index)
            self.cache.put(source, scene)
        return scene

    def readable(self, draw: Draw) -> tuple[int, Sample, list[str]]:
        """The scene of `draw`, or with `skip_unreadable` one that takes its place.

        Which one that is follows from the draw alone.

        Returns:
            its index, the scene, and one sentence per scene that could not be read.

        Raises:
            DataError: the scene, or MOST_SUBSTITUTES in a row, cannot be read.
        """
        index, problems = draw.index, []
        while True:
            try:
                return index, self.scene(index), problems
            except DataError as error:
                problems.append(str(error))
                if not self.skip_unreadable:
                    raise
                index = next_index(draw, problems, len(self))

    def __getitem__(self, draw: int | Draw) -> dict[str, Any]:
        """One item.

        Args:
            draw: `Draw(index, seed)`; a bare index means seed 0.

        Returns:
            image (3, h, w) float32; label (h, w) uint8 where there is one; boundary (h, w) uint8
            0/1 where asked for; name; size (H, W) before the transform; with `skip_unreadable`
            also skipped, the sentences of `readable`.
        """
        draw = Draw(*draw) if isinstance(draw, tuple) else Draw(draw, 0)
        index, scene, skipped = self.readable(draw)
        sample = self.transform(scene, np.random.default_rng(draw.seed))
        item: dict[str, Any] = {"image": torch.from_numpy(sample.image)}
        if sample.label is not None:
            item["label"] = torch.from_numpy(np.require(sample.label, requirements="W"))
        if self.need_boundary:
            if sample.boundary is None:
                raise ValueError(f"{self.name(index)}: the transform makes no boundary target")
            item["boundary"] = torch.from_numpy(sample.boundary)
        if self.skip_unreadable:
            item["skipped"] = skipped
        return item | {"name": self.name(index), "size": scene.image.shape[:2]}


def next_index(draw: Draw, problems: list[str], length: int) -> int:
    """The scene to try after `problems`. Raises DataError after MOST_SUBSTITUTES of them."""
    if len(problems) > MOST_SUBSTITUTES:
        raise DataError(f"{len(problems)} images in a row cannot be read, the last: {problems[-1]}")
    return substitute(draw, len(problems), length)


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

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> Entry:
        if not -len(self) <= index < len(self):
            raise IndexError(f"entry {index} of {len(self)}")
        index %= len(self)
        text = self._text[self._ends[index] : self._ends[index + 1]].tobytes().decode()
        image, _, label = text.partition("\0")
        return Entry(image, label if self._labelled else None, int(self._lines[index]))


class SegmentationDataset(SceneDataset):
    """The pairs of a list file.

    Args:
        root: DATASET.ROOT; images and labels lie under `meta.folder_under(root)`.
        list_file: relative to `root`, else to the repository's `data/`.
        meta: classes and label encodings.
        encoding: name of the label encoding; "" = the dataset's default.
        transform, need_boundary: see SceneDataset.

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
    ) -> None:
        super().__init__(meta, transform, need_boundary)
        self.root, self.folder = Path(root), meta.folder_under(root)
        self.encoding = encoding or next(iter(meta.encodings))
        meta.encoding(self.encoding)
        self._identity = (
            f"{self.folder.resolve()} {meta.encoding(self.encoding)} {meta.ignore_label}"
        )
        self.list_path = find_list(root, list_file)
        self.entries: Sequence[Entry] = EntryList(self._read_entries())

    def _read_entries(self) -> list[Entry]:
        return read_list(self.list_path)

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
                a label value that the encoding does not know.
        """
        try:
            image = self.load_image(index)
            label = self.load_label(index) if self.labelled else None
        except OSError as error:
            raise DataError(f"{self.name(index)} or its label cannot be read: {error}") from None
        if label is not None and label.shape != image.shape[:2]:
            raise DataError(self.size_problem(index, image.shape[:2], label.shape))
        return Sample(image, label)

    def source(self, index: int) -> Source:
        """Files and encoding; the stamp holds size and time of change of the files."""
        entry = self.entries[index]
        facts = []
        for file in filter(None, (entry.image, entry.label)):
            status = os.stat(self.folder / file)
            facts.append((status.st_size, status.st_mtime_ns))
        return Source(index, f"{self._identity} {entry.image} {entry.label}", stamp_of(*facts))

    def load_image(self, index: int) -> np.ndarray:
        """The photograph of entry `index`, (H, W, 3) uint8 RGB. Raises DataError."""
        file = self.entries[index].image
        return read_image(self.folder / file, file)

    def load_label(self, index: int) -> np.ndarray:
        """The class indices of entry `index`, (H, W) uint8. Raises DataError."""
        file = self.entries[index].label
        values = read_label(
            self.folder / file, self.meta.encoding(self.encoding), file, f"; {self._labels_hint}"
        )
        label = self.meta.encode(values, self.encoding, file)
        # labelTrainIds are valid labelIds: only the file's name tells them apart.
        suffix = Path(file).stem.rsplit("_", 1)[-1]
        if suffix != self.encoding and suffix in self.meta.encodings:
            raise DataError(
                f"{file} holds {suffix} by its name but is read as {self.encoding}; "
                f"set DATASET.LABELS {suffix}"
            )
        return label

    @property
    def _labels_hint(self) -> str:
        return f"DATASET.LABELS is {self.encoding}, accepted: {', '.join(self.meta.encodings)}"

    def size_problem(self, index: int, image: tuple[int, ...], label: tuple[int, ...]) -> str:
        """The sentence for sizes (height, width) that differ."""
        entry = self.entries[index]
        return (
            f"{entry.label} is {label[0]}x{label[1]} but its image {entry.image} is "
            f"{image[0]}x{image[1]} (height x width); they must be equal"
        )

    def missing_files(self) -> list[str]:
        """One sentence for every listed file that is absent, not a file, or empty."""
        problems = []
        for entry in self.entries:
            for file in filter(None, (entry.image, entry.label)):
                under = f" under {self.folder} (DATASET.ROOT={self.root})"
                problem = file_problem(self.folder / file, under)
                if problem:
                    problems.append(f"{self.list_path}:{entry.line}: {file} {problem}")
        return problems


def quick_check(dataset: SceneDataset, samples: int = 8) -> None:
    """What takes seconds and finds most mistakes, before any training or evaluation.

    Every listed file exists and is not empty; some samples (the first ones and others spread over
    the list) decode, match in size and hold known label values, one of a class at least; the crop
    of a TrainTransform fits (see `check_crop`), and there are labels to train with.

    With `skip_unreadable` a file may be missing or damaged as long as one sample can be read.

    Raises ValueError with one sentence about the first problem.
    """
    training = isinstance(dataset.transform, TrainTransform)
    if isinstance(dataset, SegmentationDataset):
        if training and not dataset.labelled:
            raise DataError(f"{dataset.list_path} names no labels; training needs image<TAB>label")
        if not dataset.folder.is_dir():
            raise DataError(
                f"{dataset.folder} is not a folder; DATASET.ROOT is {dataset.root} and must hold "
                f"{dataset.meta.name}/ as data/README.md shows"
            )
        problems = [] if dataset.skip_unreadable else dataset.missing_files()
        if problems:
            more = f" (and {len(problems) - 1} more like it)" if len(problems) > 1 else ""
            raise DataError(problems[0] + more)
    first = range(min(samples // 2, len(dataset)))
    spread = np.linspace(0, len(dataset) - 1, num=samples - samples // 2, dtype=int)
    chosen = sorted({*first, *(int(index) for index in spread)})
    scenes, unreadable = [], []
    for index in chosen:
        try:
            scenes.append(dataset.load(index))
        except DataError as error:
            if not dataset.skip_unreadable:
                raise
            unreadable.append(error)
    if not scenes:
        raise unreadable[0]
    if training:
        check_crop(dataset.transform, [scene.image.shape[:2] for scene in scenes])
    labels = [scene.label for scene in scenes if scene.label is not None]
    if labels and not any((label != dataset.meta.ignore_label).any() for label in labels):
        raise DataError(
            f"none of {len(labels)} labels, {dataset.name(0)} the first, has a pixel of a class of "
            f"{dataset.meta.name}; DATASET.LABELS says how labels are encoded"
        )
