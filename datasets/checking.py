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


class Summary:
    """What a list holds, added up from its findings.

    problems make training wrong or impossible; notes are worth a look.
    pixels, images: (num_classes + 1,) int64, the ignored pixels last.
    """

    def __init__(self, dataset: SegmentationDataset) -> None:
        self.dataset = dataset
        self.problems: list[str] = []
        self.notes: list[str] = []
        self.sizes: Counter[tuple[int, int]] = Counter()
        self.pixels = np.zeros(dataset.meta.num_classes + 1, np.int64)
        self.images = np.zeros_like(self.pixels)

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
            self.notes.append(f"{_place(self.dataset, finding.index)}{entry.label} is all ignored")

    def finish(self) -> None:
        """Add what shows only over the whole list."""
        meta, path = self.dataset.meta, self.dataset.list_path
        if not self.pixels.any():
            return
        if not self.pixels[:-1].any():
            self.problems.append(
                f"{path}: no label has a pixel of a class of {meta.name} when read as "
                f"{self.dataset.encoding}; DATASET.LABELS accepts {', '.join(meta.encodings)}"
            )
        absent = [name for name, n in zip(meta.class_names, self.pixels, strict=False) if not n]
        if absent:
            self.notes.append(f"{path}: no pixel of {', '.join(absent)}")


def examine(dataset: SegmentationDataset, index: int) -> Finding:
    """Read both files of entry `index`; a broken image does not hide a broken label."""
    finding = Finding(index)
    where = _place(dataset, index)
    try:
        finding.size = dataset.load_image(index).shape[:2]
    except (DataError, OSError) as error:
        finding.problems.append(f"{where}{error}")
    if not dataset.labelled:
        return finding
    try:
        label = dataset.load_label(index)
    except (DataError, OSError) as error:
        finding.problems.append(f"{where}{error}")
        return finding
    if finding.size and finding.size != label.shape:
        finding.problems.append(where + dataset.size_problem(index, finding.size, label.shape))
    counts = np.bincount(label.ravel(), minlength=256)
    meta = dataset.meta
    finding.counts = np.append(counts[: meta.num_classes], counts[meta.ignore_label])
    return finding


def examine_all(dataset: SegmentationDataset, workers: int) -> Iterator[Finding]:
    """`examine` of every entry, in list order; `workers` processes, 0 = in this one.

    Raises DataError if a process dies, for example of lack of memory.
    """
    if workers < 1:
        yield from (examine(dataset, index) for index in range(len(dataset)))
        return
    chunk = max(1, min(16, len(dataset) // (4 * workers)))
    pool = ProcessPoolExecutor(workers, initializer=_start, initargs=(dataset,))
    try:
        yield from pool.map(_examine_one, range(len(dataset)), chunksize=chunk)
    except BrokenProcessPool:
        raise DataError("a process died while checking; WORKERS 0 checks without any") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _place(dataset: SegmentationDataset, index: int) -> str:
    return f"{dataset.list_path}:{dataset.entries[index].line}: "


_examined: list[SegmentationDataset] = []  # of a worker process, set once by _start


def _start(dataset: SegmentationDataset) -> None:
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _examined[:] = [dataset]


def _examine_one(index: int) -> Finding:
    return examine(_examined[0], index)
