"""Every problem of every pair of a list, found in parallel."""

import signal
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field

import cv2
import numpy as np

from datasets.meta import DataError
from datasets.segmentation import SegmentationDataset


@dataclass
class Finding:
    """What one list entry turned out to be.

    problems: sentences that begin with list and line; empty for a sound pair.
    size: (height, width) of the image, None if it is unreadable.
    counts: pixels per class, the ignored ones last, (num_classes + 1,) int64; None if unreadable.
    """

    index: int
    problems: list[str] = field(default_factory=list)
    size: tuple[int, int] | None = None
    counts: np.ndarray | None = None


def examine(dataset: SegmentationDataset, index: int) -> Finding:
    """Read both files of entry `index`; a broken image does not hide a broken label."""
    finding = Finding(index)
    entry = dataset.entries[index]
    where = f"{dataset.list_path}:{entry.line}: "
    try:
        finding.size = dataset.load_image(index).shape[:2]
    except (DataError, OSError) as error:
        finding.problems.append(f"{where}{error}")
    if entry.label is None:
        return finding
    try:
        label = dataset.load_label(index)
    except (DataError, OSError) as error:
        finding.problems.append(f"{where}{error}")
        return finding
    if finding.size and finding.size != label.shape:
        finding.problems.append(where + dataset.size_problem(index, finding.size, label.shape))
    counts = np.bincount(label.ravel(), minlength=256)
    classes = dataset.meta.num_classes
    finding.counts = np.append(counts[:classes], counts[dataset.meta.ignore_label])
    return finding


def examine_all(dataset: SegmentationDataset, workers: int) -> Iterator[Finding]:
    """`examine` of every entry, in list order; `workers` processes, 0 = in this one.

    Raises DataError if a worker process dies (for example of lack of memory).
    """
    if workers < 1:
        yield from (examine(dataset, index) for index in range(len(dataset)))
        return
    chunk = max(1, min(16, len(dataset) // (4 * workers)))
    with ProcessPoolExecutor(workers, initializer=_start, initargs=(dataset,)) as pool:
        try:
            yield from pool.map(_examine_one, range(len(dataset)), chunksize=chunk)
        except BrokenProcessPool:
            raise DataError("a process died while checking; try again with WORKERS 0") from None
        finally:
            pool.shutdown(cancel_futures=True)


@dataclass
class Summary:
    """What a list holds, added up from its findings."""

    dataset: SegmentationDataset
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sizes: Counter = field(default_factory=Counter)
    pixels: np.ndarray = None
    images: np.ndarray = None

    def __post_init__(self) -> None:
        classes = self.dataset.meta.num_classes + 1
        self.pixels = np.zeros(classes, np.int64)
        self.images = np.zeros(classes, np.int64)

    def add(self, finding: Finding) -> None:
        """Take one finding in."""
        self.problems += finding.problems
        if finding.size:
            self.sizes[finding.size] += 1
        if finding.counts is None:
            return
        self.pixels += finding.counts
        self.images += finding.counts > 0
        if not finding.counts[:-1].any():
            entry = self.dataset.entries[finding.index]
            self.notes.append(
                f"{self.dataset.list_path}:{entry.line}: {entry.label} has no pixel of any class"
            )

    def finish(self) -> None:
        """Add what only shows over the whole list."""
        if self.pixels[-1] and not self.pixels[:-1].any():
            self.problems.append(
                f"{self.dataset.list_path}: no label has a pixel of a class of "
                f"{self.dataset.meta.name}; DATASET.LABELS says how labels are encoded"
            )
        elif self.pixels.any():
            names = self.dataset.meta.class_names
            absent = [name for name, count in zip(names, self.pixels, strict=False) if not count]
            if absent:
                self.notes.append(f"{self.dataset.list_path}: no pixel of {', '.join(absent)}")


_worker_dataset: list[SegmentationDataset] = []


def _start(dataset: SegmentationDataset) -> None:
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _worker_dataset[:] = [dataset]


def _examine_one(index: int) -> Finding:
    return examine(_worker_dataset[0], index)
