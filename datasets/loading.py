"""Datasets -> batches, in worker processes that end with the program."""

import os
import signal
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from .meta import DataError
from .sampler import EpochBatchSampler


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
    # Ctrl-C reaches the whole process group. The trainer decides when workers end; they must not
    # die before it has finished its step and saved.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)


class Loader(DataLoader):
    """A DataLoader whose workers are not interrupted while they start."""

    def __iter__(self):
        if not hasattr(signal, "pthread_sigmask"):
            return super().__iter__()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def cpu_count() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def make_loader(
    dataset: Dataset,
    *,
    batch_sampler: EpochBatchSampler | None = None,
    batch_size: int = 1,
    indices: Sequence[int] | None = None,
    workers: int = 0,
    pin_memory: bool | None = None,
    collate_items: Callable[[Sequence[Any]], dict[str, Any]] = collate,
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
        collate_items: items -> batch.
    """
    if workers < 0:
        raise ValueError(f"WORKERS is {workers}; accepted: 0 and above")
    order: dict[str, Iterable | int | None]
    if batch_sampler is not None:
        order = {"batch_sampler": batch_sampler}
    else:
        order = {"batch_size": batch_size, "sampler": indices}
    workers = min(workers, cpu_count())
    return Loader(
        dataset,
        **order,
        num_workers=workers,
        collate_fn=collate_items,
        worker_init_fn=start_worker,
        generator=torch.Generator(),  # its seed draws must not move the generator of the training
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available() if pin_memory is None else pin_memory,
    )
