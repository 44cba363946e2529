"""Failures of machine and company, told from faults of the program."""

import pytest
import torch
import torch.distributed as dist

from utils.failures import sentence_about


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nmore"),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"
        ),
        MemoryError(),
    ],
    ids=["GPU", "CPU", "Python"],
)
def test_what_to_lower_where_memory_is_out(error):
    sentence = sentence_about(error)
    assert "TRAIN.BATCH_SIZE_PER_GPU" in sentence and "\n" not in sentence
    assert ("the GPU has no memory" in sentence) == isinstance(error, torch.OutOfMemoryError)


@pytest.mark.parametrize(
    "error",
    [
        dist.DistBackendError("NCCL error"),
        dist.DistNetworkError("connection refused"),
        dist.DistStoreError("wait timeout"),
    ],
    ids=lambda e: type(e).__name__,
)
def test_processes_that_are_lost(error):
    assert "another process of this run has ended" in sentence_about(error)


def test_a_fault_of_the_program_stays_one():
    for error in (RuntimeError("Connection closed by peer"), KeyError("x"), RuntimeError("shape")):
        assert sentence_about(error) is None  # there is no group of processes here
