"""Published label files -> index PNGs: COCO-Stuff (.png and .mat) and SBD (.mat)."""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from ..checking.labels import LabelCounts, better_encodings
from ..cocostuff import COCOSTUFF10K, COCOSTUFF164K
from ..files import read_label
from ..machine import start_context
from ..meta import DataError, DatasetMeta
from ..voc2012 import VOC2012
from .matfile import read_matrix

SUFFIX = "_labelTrainIds.png"
MOST_LOOKED_AT = 100  # files of one data set
Job = tuple[Path, Path]  # source, target
Write = Callable[[Path, bytes], None]  # puts a whole file at a path, or none


def pending(dataset: str, folder: Path, sbd: Path | None = None) -> list[Job]:
    """The label files of `dataset` that still lack their index PNG."""
    if dataset == "cocostuff164k":
        sources = (p for p in folder.glob("annotations/*2017/*.png") if SUFFIX not in p.name)
        jobs = [(path, path.with_name(path.stem + SUFFIX)) for path in sources]
    elif dataset == "cocostuff10k":
        jobs = [(p, p.with_name(p.stem + SUFFIX)) for p in folder.glob("annotations/**/*.mat")]
    elif dataset == "voc2012" and sbd is not None:
        sources = (sbd / "cls").glob("*.mat")
        jobs = [(p, folder / f"SegmentationClassAug/{p.stem}.png") for p in sources]
    else:
        jobs = []
    return sorted(job for job in jobs if not (job[1].is_file() and job[1].stat().st_size))


def convert(dataset: str, jobs: list[Job], workers: int, write: Write) -> Iterator[str | None]:
    """`write` the target of every job; yields a sentence for each that failed, else None."""
    work = functools.partial(_CONVERTERS[dataset], write=write)
    if workers < 2 or len(jobs) < 2:
        yield from map(work, jobs)
        return
    with ProcessPoolExecutor(workers, start_context()) as pool:
        yield from pool.map(work, jobs, chunksize=max(1, min(64, len(jobs) // workers)))


def convert_164k(job: Job, write: Write) -> str | None:
    """A pixel map of COCO-Stuff 164K."""
    encoding = COCOSTUFF164K.encoding("stuffthingmaps")
    return _convert(
        job,
        lambda path: COCOSTUFF164K.encode(read_label(path, encoding), "stuffthingmaps", path),
        write,
    )


def convert_10k(job: Job, write: Write) -> str | None:
    """A .mat file of COCO-Stuff 10K."""
    return _convert(job, lambda path: _encode(COCOSTUFF10K, "categoryIds", path, "S"), write)


def convert_sbd(job: Job, write: Write) -> str | None:
    """A .mat file of SBD's cls folder."""
    return _convert(
        job, lambda path: _encode(VOC2012, "index", path, "GTcls", "Segmentation"), write
    )


_CONVERTERS: dict[str, Callable[[Job, Write], str | None]] = {
    "cocostuff164k": convert_164k,
    "cocostuff10k": convert_10k,
    "voc2012": convert_sbd,
}


def _encode(meta: DatasetMeta, encoding: str, path: Path, *names: str) -> np.ndarray:
    values = read_matrix(path, *names)
    if not np.isin(values, np.arange(256)).all():
        raise DataError(f"{path} holds label values that are not whole numbers of 0..255")
    return meta.encode(np.ascontiguousarray(values.astype(np.uint8)), encoding, str(path))


def _convert(job: Job, read: Callable[[Path], np.ndarray], write: Write) -> str | None:
    source, target = job
    try:
        label = read(source)
    except DataError as error:
        return str(error)
    write(target, cv2.imencode(".png", label)[1].tobytes())
    return None


def spelling_10k(labels: Iterable[Path]) -> list[str]:
    """Which encoding the *_labelTrainIds.png of COCO-Stuff 10K have; several where it is open.

    Converters are about that write 0..170 and 255 where nothing is labelled, 1..171 and 0, or the
    categories' own numbers. The values of many labels decide, as in the check of a list.
    """
    meta, counts = COCOSTUFF10K, LabelCounts(COCOSTUFF10K.num_classes)
    for path in itertools.islice(labels, MOST_LOOKED_AT):
        values = read_label(path, meta.encoding("trainIds"))
        counts.add(np.bincount(values.ravel(), minlength=256), None)
    return better_encodings(meta, "trainIds", counts) or ["trainIds"]
