"""Every problem of every pair of a list, found in parallel."""

import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from ..eval_transform import EvalTransform
from ..files import Entry, read_header, read_image, read_label, scan_list
from ..machine import start_context
from ..meta import DataError, DatasetMeta
from ..segmentation import SegmentationDataset
from .label_files import label_oddities
from .labels import class_counts
from .photographs import Oddity, photograph_oddities

MOSTLY = 0.5  # share of pixels of classes that speaks for a label
HARDLY = 0.05  # and against one


class CheckedList(SegmentationDataset):
    """A list whose bad lines do not keep the good ones from being read.

    Args:
        repeats: the list may name a pair several times.

    list_problems: a sentence per bad line; `entries` are the others and may be empty.
    """

    def __init__(
        self,
        root: str | Path,
        list_file: str | Path,
        meta: DatasetMeta,
        encoding: str = "",
        *,
        repeats: bool = False,
    ) -> None:
        self.list_problems: list[str] = []
        super().__init__(
            root, list_file, meta, encoding, transform=EvalTransform(), repeats=repeats
        )

    def _read_entries(self) -> list[Entry]:
        entries, self.list_problems = scan_list(
            self.list_path, repeats=self.repeats, folder=self.folder
        )
        return entries

    @property
    def labelled(self) -> bool:
        """Whether the list names labels."""
        return bool(self.entries) and self.entries[0].label is not None

    @property
    def bad_lines(self) -> int:
        """Lines that are no entry."""
        start = f"{self.list_path}:"
        return sum(problem.startswith(start) for problem in self.list_problems)


@dataclass
class Finding:
    """What one list entry turned out to be.

    problems: sentences that begin with list and line; empty for a sound pair.
    suspicions: their texts are as problems; what may be meant so, but is worth a look.
    size: (height, width) of the image, None if it is unreadable.
    bits: per value of the image file.
    counts: pixels per class, the ignored ones last, (num_classes + 1,) int64; None if unreadable.
    values: pixels per label value, (256,) int64; None if unreadable, or a label by colour.
    """

    index: int
    problems: list[str] = field(default_factory=list)
    suspicions: list[Oddity] = field(default_factory=list)
    size: tuple[int, int] | None = None
    bits: int = 8
    counts: np.ndarray | None = None
    values: np.ndarray | None = None


def examine(dataset: CheckedList, index: int) -> Finding:
    """Read both files of entry `index`; a broken image does not hide a broken label."""
    finding = Finding(index)
    where, entry = dataset.place(index), dataset.entries[index]
    try:
        _examine_image(dataset, finding)
    except (DataError, OSError) as error:
        finding.problems.append(f"{where}{error}{dataset.space_hint(index)}")
    except MemoryError:
        finding.problems.append(f"{where}{entry.image} does not fit into memory")
    if not dataset.labelled:
        return finding
    values = label = None
    try:
        values = dataset.label_values(index)
        if values.ndim == 2:
            finding.values = np.bincount(values.ravel(), minlength=256)
        label = dataset.encode_label(index, values)
    except (DataError, OSError) as error:
        finding.problems.append(f"{where}{error}")
    except MemoryError:
        finding.problems.append(f"{where}{entry.label} does not fit into memory")
    if _is_swapped(dataset, index, label):
        finding.problems = [
            f"{where}{entry.image} holds label values and {entry.label} a photograph: image and "
            "label are swapped; a line is image<TAB>label"
        ]
        finding.values = None
    else:
        _examine_label(dataset, finding, values, label)
    return finding


def _examine_image(dataset: CheckedList, finding: Finding) -> None:
    where, file = dataset.place(finding.index), dataset.entries[finding.index].image
    image = dataset.load_image(finding.index)
    finding.size = image.shape[:2]
    data = (dataset.folder / file).read_bytes()
    header = read_header(data)
    finding.bits = header.bits if header else 8
    oddities = photograph_oddities(data, header)
    if _is_flat(image):
        oddities.append(Oddity("flat", "is of a single colour"))
    finding.suspicions += _behind(f"{where}{file}", oddities)


def _behind(start: str, oddities: list[Oddity]) -> list[Oddity]:
    return [oddity._replace(text=f"{start} {oddity.text}") for oddity in oddities]


def _examine_label(
    dataset: CheckedList, finding: Finding, values: np.ndarray | None, label: np.ndarray | None
) -> None:
    """What a label says as far as it can be read: `values` of its file, classes in `label`."""
    meta, index = dataset.meta, finding.index
    where, file = dataset.place(index), dataset.entries[index].label
    scheme = meta.encoding(dataset.encoding)
    try:
        data = (dataset.folder / file).read_bytes()
    except (OSError, MemoryError):
        return  # which is said already
    header = read_header(data)
    size = values.shape[:2] if values is not None else header and header.size
    if size and finding.size and finding.size != size:
        finding.problems.append(where + dataset.size_problem(index, finding.size, size))
    ignored = None if label is None else label == meta.ignore_label
    oddities = label_oddities(data, values, ignored, meta, scheme)
    if label is not None:
        finding.counts = class_counts(label, meta.num_classes, meta.ignore_label)
        present = np.flatnonzero(finding.counts[:-1])
        if not len(present):
            oddities.append(Oddity("ignored", "is all ignored"))
        elif len(present) == 1:
            rest = " or ignored" if finding.counts[-1] else ""
            oddities.append(Oddity("one class", f"is all {meta.class_names[present[0]]}{rest}"))
    finding.suspicions += _behind(f"{where}{file}", oddities)


def _is_flat(image: np.ndarray) -> bool:
    first = image[0, 0]
    return bool((image[::16, ::16] == first).all() and (image == first).all())


def _is_swapped(dataset: CheckedList, index: int, label: np.ndarray | None) -> bool:
    """Whether the image reads as a label and the label, `label` if it was read, only as an image.

    Labels by colour read photographs too, as ignored nearly everywhere.
    """
    ignore, entry = dataset.meta.ignore_label, dataset.entries[index]
    if label is not None and (
        dataset.meta.encoding(dataset.encoding).channels == 1
        or np.count_nonzero(label != ignore) > HARDLY * label.size
    ):
        return False
    scheme = dataset.meta.encoding(dataset.encoding)
    try:
        values = read_label(dataset.folder / entry.image, scheme)
        other = dataset.meta.encode(values, dataset.encoding)
        read_image(dataset.folder / entry.label)
    except (DataError, OSError, MemoryError):
        return False
    return bool(np.count_nonzero(other != ignore) > MOSTLY * other.size)


def examine_all(dataset: CheckedList, workers: int) -> Iterator[Finding]:
    """`examine` of every entry, in list order; `workers` processes, 0 = in this one.

    An entry over which a process dies, for example of lack of memory, is a problem like others.
    """
    if workers < 1:
        yield from (examine(dataset, index) for index in range(len(dataset)))
        return
    chunk = max(1, min(16, len(dataset) // (4 * workers)))
    done = 0
    while done < len(dataset):
        for finding in _in_processes(dataset, range(done, len(dataset)), workers, chunk):
            done += 1
            yield finding
        # Where a process died, the culprit is among those under way: one process for each.
        for index in range(done, min(done + chunk * (workers + 1), len(dataset))):
            finding = next(_in_processes(dataset, (index,), 1, 1), None)
            if finding is None:
                files = " and ".join(filter(None, dataset.entries[index][:2]))
                problem = f"{dataset.place(index)}a process died while it read {files}"
                finding = Finding(index, [problem])
            done += 1
            yield finding


def _in_processes(
    dataset: CheckedList, indices: Sequence[int], workers: int, chunk: int
) -> Iterator[Finding]:
    """`examine` of `indices` in order; ends early where a process dies."""
    pool = ProcessPoolExecutor(workers, start_context(), initializer=_start, initargs=(dataset,))
    try:
        yield from pool.map(_examine_one, indices, chunksize=chunk)
    except BrokenProcessPool:
        return
    finally:
        pool.shutdown(cancel_futures=True)


_examined: list[CheckedList] = []  # of a worker process, set once by _start


def _start(dataset: CheckedList) -> None:
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _examined[:] = [dataset]


def _examine_one(index: int) -> Finding:
    return examine(_examined[0], index)
