"""Failures that lie in the machine, not in the program: one sentence each."""

import re

import torch
import torch.distributed as dist

GOES_ON = "The checkpoints of a run are whole: TRAIN.RESUME True goes on from the last"
LOST = "closed by peer|reset by peer|Broken pipe|[Tt]imed out|[Tt]imeout|refused|NCCL|gloo"
NO_MEMORY = "can't allocate memory|Cannot allocate memory|out of memory|Insufficient memory"


def sentence_about(error: Exception) -> str | None:
    """What to say of `error`; None where it is a fault of the program."""
    return _memory(error) or _processes(error)


def memory_failure(error: Exception) -> str | None:
    """That memory has run out, if that is what `error` says."""
    if not isinstance(error, MemoryError) and not re.search(NO_MEMORY, str(error)):
        return None
    where = "the GPU" if isinstance(error, torch.OutOfMemoryError) else "this machine"
    first = (str(error).strip().splitlines() or ["no room"])[0]
    return f"{where} has no memory left ({first})"


def _memory(error: Exception) -> str | None:
    failure = memory_failure(error)
    return failure and (
        f"{failure}; in training lower TRAIN.BATCH_SIZE_PER_GPU and raise TRAIN.ACCUMULATE by as "
        "much (--probe tells what fits) or lower TRAIN.IMAGE_SIZE, in evaluation lower "
        f"TEST.BATCH_SIZE_PER_GPU or set TEST.SLIDE, in prediction set --slide. {GOES_ON}"
    )


def _processes(error: Exception) -> str | None:
    """Processes that cannot reach one another."""
    if not dist.is_available():
        return None
    told = isinstance(error, dist.DistError)
    if not told and not (dist.is_initialized() and re.search(LOST, str(error))):
        return None
    first = str(error).strip().splitlines()[0]
    return (
        f"another process of this run has ended or cannot be reached ({first}); its own output "
        f"says why. {GOES_ON}"
    )


def first_cause(error: BaseException) -> str:
    """The first line of what went wrong first, which compilers and exporters hide behind advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
