"""Datasets -> batches, in worker processes that end with the program."""

import errno
import gc
import math
import os
import re
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from .cache import NOT_SHAREABLE
from .errors import InputError
from .machine import SHARED_MEMORY, cpu_count, shared_memory_left, start_context
from .meta import DataError
from .sampler import Draw, EpochBatchSampler

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
ASKING = {getattr(signal, name) for name in _NAMES if hasattr(signal, name)}  # a run to stop


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Items -> batch: tensors are stacked, names and sizes become lists.

    Raises DataError where images of different size meet in one batch.
    """
    batch: dict[str, Any] = {}
    for key, first in items[0].items():
        values = [item[key] for item in items]
        if not isinstance(first, torch.Tensor):
            batch[key] = values
            continue
        odd = next((i for i in items if i[key].shape != first.shape), None)
        if odd is not None:
            raise DataError(
                f"{items[0]['name']} and {odd['name']} differ in size ({tuple(first.shape)} and "
                f"{tuple(odd[key].shape)}) and cannot share a batch; use a batch size of 1"
            )
        batch[key] = default_collate(values)
    return batch


def start_worker(worker: int) -> None:
    """Prepare a worker process: one thread, and no signals that are meant for the trainer.

    Its generators need no care: torch seeds them, and a sample takes its seed from its Draw.
    """
    cv2.setNumThreads(0)
    gc.freeze()  # a collection would write to all that the trainer shares, and so copy it
    # Ctrl-C reaches the whole process group, and a scheduler's signals every process. The trainer
    # decides when workers end; they must not die before it has finished its step and saved.
    for number in ASKING - {signal.SIGTERM}:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo") and hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        signal.signal(signal.SIGTERM, lambda *_: None)  # should another thread get it
        threading.Thread(target=_end_with_the_trainer, args=(os.getppid(),), daemon=True).start()
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)


def _end_with_the_trainer(trainer: int) -> None:
    """End when `trainer` says so by SIGTERM, as multiprocessing does, and by nobody else's."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != trainer:
        pass
    os._exit(0)


class LoaderError(OSError):
    """Loader processes failed for a reason that lies in the machine, told in one sentence."""


FULL = (
    "the memory that loader processes share (/dev/shm) is full; set WORKERS lower (0 reads in this "
    "process), or give it more room, in a container by --shm-size or --ipc=host"
)
FAILURES = (  # what torch says, and what to do about it
    (
        r"Too many open files|ancdata",
        "loader processes and this one have too many files open; raise the limit by ulimit -n, or "
        "set WORKERS lower (0 reads in this process)",
    ),
    (
        r"shared memory|Bus error|No space left on device",
        FULL,
    ),
    (
        r"MemoryError|Cannot allocate memory|can't allocate memory|signal: Killed",
        "a loader process got no memory; set WORKERS lower (0 reads in this process)",
    ),
    (
        r"DataLoader worker \(pid",
        "a loader process ended without a word; WORKERS 0 reads in this process and shows why",
    ),
)


def worker_failure(error: Exception) -> LoaderError | None:
    """The one sentence about a failure of loader processes; None where `error` is none."""
    text = f"{type(error).__name__}: {error}"
    if "DataLoader worker" not in text and "shared memory" not in text and "ancdata" not in text:
        return None
    return next((LoaderError(cure) for said, cure in FAILURES if re.search(said, text)), None)


class Batches:
    """The iterator of a Loader: its failures are single sentences."""

    def __init__(self, batches: Iterator[dict[str, Any]]) -> None:
        self._batches = batches

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> dict[str, Any]:
        try:
            return next(self._batches)
        except (RuntimeError, OSError, MemoryError) as error:
            if (failure := worker_failure(error)) is None:
                raise
            raise failure from None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batches, name)


class Loader(DataLoader):
    """A DataLoader whose workers are not interrupted while they start."""

    def __iter__(self) -> Batches:
        masks = hasattr(signal, "pthread_sigmask")
        before = signal.pthread_sigmask(signal.SIG_BLOCK, ASKING) if masks else None
        try:
            return Batches(super().__iter__())
        except OSError as error:
            if self.num_workers and error.errno == errno.ENOSPC:  # semaphores lie there, too
                raise LoaderError(FULL) from None
            raise
        finally:
            if masks:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)


def require_shared_memory(batch_bytes: int, workers: int, prefetch: int = 2) -> None:
    """Raise ValueError where what `workers` processes have under way does not fit /dev/shm.

    Args:
        batch_bytes: of all tensors of one batch.
        prefetch: batches that each of them makes ahead.
    """
    left = shared_memory_left()
    most = workers * prefetch + 1  # the one that is being used is still there
    if most * batch_bytes <= left:
        return
    fitting = max(0, int((left / batch_bytes - 1) / prefetch))
    raise InputError(
        f"{SHARED_MEMORY} has room for {left / 1e6:.0f} MB, but {workers} loader processes share "
        f"up to {most} batches of {batch_bytes / 1e6:.1f} MB through it; set WORKERS {fitting}"
        f"{'' if fitting else ' (reads in this process)'}, or give it more room, in a container by "
        f"--shm-size={max(1, math.ceil(most * batch_bytes / 1e9))}g"
    )


def batch_bytes(
    dataset: Dataset, indices: Sequence[int] | None, size: int, collate_items: Callable
) -> int:
    """Bytes of the tensors of a batch, taken from its first sample; 0 if that cannot be read."""
    first = indices[0] if indices else 0
    try:
        batch = collate_items([dataset[Draw(first, 0)]])
    except (DataError, OSError):  # to be told when its turn comes, or skipped
        return 0
    return size * sum(v.nbytes for v in batch.values() if isinstance(v, torch.Tensor))


def make_loader(
    dataset: Dataset,
    *,
    batch_sampler: EpochBatchSampler | None = None,
    batch_size: int = 1,
    indices: Sequence[int] | None = None,
    workers: int = 0,
    pin_memory: bool | None = None,
    collate_items: Callable[[Sequence[Any]], dict[str, Any]] | None = None,
) -> DataLoader:
    """A DataLoader of dict batches (see `collate`).

    Args:
        dataset: items as SceneDataset gives them.
        batch_sampler: for training; without it the dataset is read in order, `batch_size` at a
            time, the last batch may be smaller.
        indices: without a batch sampler, read these only (a process's share of an evaluation).
        workers: processes beside this one, no more than there are CPU cores at hand; they stay
            alive between epochs.
        pin_memory: None = when a CUDA device is there.
        collate_items: items -> batch; None = as the dataset says (`batch`), else `collate`.

    Raises:
        ValueError: fewer than 0 workers, or more than the machine can share batches with.
    """
    if workers < 0:
        raise InputError(f"WORKERS is {workers}; accepted: 0 and above")
    collate_items = collate_items or getattr(dataset, "batch", collate)
    order: dict[str, Iterable | int | None]
    if batch_sampler is not None:
        order, batch_size, indices = (
            {"batch_sampler": batch_sampler},
            batch_sampler.batch_size,
            None,
        )
    else:
        order = {"batch_size": batch_size, "sampler": indices}
    workers, context = min(workers, cpu_count()), None
    if workers:
        context = start_context()
        cache = getattr(dataset, "cache", None)
        if cache is not None and not cache.shareable:
            raise InputError(NOT_SHAREABLE)
        if len(dataset):
            require_shared_memory(batch_bytes(dataset, indices, batch_size, collate_items), workers)
    return Loader(
        dataset,
        **order,
        num_workers=workers,
        multiprocessing_context=context,
        collate_fn=collate_items,
        worker_init_fn=start_worker,
        generator=torch.Generator(),  # its seed draws must not move the generator of the training
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available() if pin_memory is None else pin_memory,
    )
