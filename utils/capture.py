"""A step recorded once as a CUDA graph and replayed: the GPU then no longer waits for Python."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Inputs = Sequence[tuple[Tensor | None, ...]]
EAGER_STEPS = 3  # real ones, in which kernels are chosen and optimisers make their memory


class Capture:
    """Runs `compute(inputs)` eagerly a few times, records it, and replays the record from then on.

    The eager steps are steps of the run, on a stream of their own as recording asks for; recording
    computes nothing. So a captured run goes the way of an eager one. All that `compute` reads must
    keep its place: inputs are copied to where the recorded ones lie.

    Args:
        tell: called with one sentence if recording fails; steps are then computed eagerly.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.tell = tell
        self.graph: torch.cuda.CUDAGraph | None = None
        self.failed = False
        self._done = 0
        self._inputs: Inputs = ()
        self._result: Tensor | None = None
        self._stream: torch.cuda.Stream | None = None

    def __call__(self, compute: Callable[[Inputs], Tensor], inputs: Inputs) -> Tensor:
        """The result of `compute`, a new tensor."""
        if self.failed:
            return compute(inputs)
        if self._done < EAGER_STEPS:
            self._done += 1
            return self._aside(compute, inputs)
        if self.graph is None:
            self._record(compute, inputs)
            if self.graph is None:
                return compute(inputs)
        for kept, new in zip(self._inputs, inputs, strict=True):
            for place, value in zip(kept, new, strict=True):
                if place is not None:
                    place.copy_(value, non_blocking=True)
        self.graph.replay()
        return self._result.clone()

    def _aside(self, compute: Callable[[Inputs], Tensor], inputs: Inputs) -> Tensor:
        """Eagerly, on the stream that warms up for recording."""
        current = torch.cuda.current_stream()
        self._stream = self._stream or torch.cuda.Stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = compute(inputs)
        current.wait_stream(self._stream)
        for tensor in (result, *(t for part in inputs for t in part if t is not None)):
            tensor.record_stream(current)
            tensor.record_stream(self._stream)
        return result

    def _record(self, compute: Callable[[Inputs], Tensor], inputs: Inputs) -> None:
        self._inputs = [tuple(None if t is None else t.clone() for t in part) for part in inputs]
        try:
            self.graph, self._result = record(lambda: compute(self._inputs))
            return
        except RecordingError as error:
            reason = str(error)
        self.failed, self._inputs = True, ()
        torch.cuda.empty_cache()
        self.tell(f"steps are not captured but computed one by one: {reason}")


class RecordingError(RuntimeError):
    """Why a recording failed, in a line; stream, allocator and generator are as they were."""


def record(compute: Callable[[], Tensor]) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    """A CUDA graph of `compute`, and where it leaves its result. Nothing is computed.

    Raises:
        RecordingError: it cannot be recorded; out of memory is one of the reasons.
    """
    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    before: Any = generator.clone_state()
    graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
    # Threads of a loader go on calling CUDA meanwhile.
    recording = torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local")
    try:
        # The outer context puts the stream back, which a failing `recording` does not.
        with torch.cuda.stream(torch.cuda.current_stream()), recording:
            result = compute()
        return graph, result
    except RuntimeError as error:  # out of memory is one of these
        reason = _cause(error)
    # Here and not above, where the error still holds all that was computed.
    generator.graphsafe_set_state(before)
    del graph, recording
    _end_allocation(pool)
    raise RecordingError(reason)


def _cause(error: BaseException) -> str:
    """What went wrong first; the end of a broken recording only says that it is broken."""
    while error.__context__ is not None:
        error = error.__context__
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _end_allocation(pool: tuple[int, int]) -> None:
    """Let the allocator know that nothing is recorded into `pool` any more.

    PyTorch before 2.13 does not tell it when a recording ends with an error. The allocator then
    refuses to give cached memory back for the rest of the process.
    """
    with contextlib.suppress(RuntimeError):  # it knows
        torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
