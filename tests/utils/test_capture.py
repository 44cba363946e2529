"""When a step is computed, recorded and replayed; with a stand-in for CUDA, on the CPU.

What a recording really holds only a GPU shows: tests/gpu/suite.py.
"""

import contextlib
import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from utils import runtimes
from utils.capture import EAGER_STEPS, Capture, RecordingError


class Cuda:
    """As much of torch.cuda as a recorder needs; a graph knows what to compute again."""

    def __init__(self):
        self.stream_now, self.recording, self.failure = "main", None, None
        self.open_pools, self.emptied, self.generator = set(), 0, "as it was"

    def install(self, monkeypatch):
        fake = {
            "current_stream": lambda: SimpleNamespace(
                name=self.stream_now, wait_stream=lambda other: None
            ),
            "Stream": lambda: SimpleNamespace(name="side", wait_stream=lambda other: None),
            "stream": self.on_stream,
            "graph": self.graph,
            "CUDAGraph": lambda: SimpleNamespace(replay=None),
            "graph_pool_handle": lambda: (0, 7),
            "current_device": lambda: 0,
            "default_generators": [self],
            "empty_cache": self.empty_cache,
        }
        for name, value in fake.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(Tensor, "record_stream", lambda tensor, stream: None)
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", self.end, raising=False)

    @contextlib.contextmanager
    def on_stream(self, stream):
        before, self.stream_now = self.stream_now, stream.name
        try:
            yield
        finally:
            self.stream_now = before

    @contextlib.contextmanager
    def graph(self, graph, pool, capture_error_mode):
        assert capture_error_mode == "thread_local"  # loader threads may use CUDA meanwhile
        self.stream_now, self.recording = "recording", graph
        self.open_pools.add(pool)
        self.generator = "recording"
        try:
            yield
        finally:
            self.recording = None
            if self.failure == "broken":  # neither stream nor allocator is then put back
                raise RuntimeError("operation failed due to a previous error during capture")
            self.open_pools.remove(pool)
            self.stream_now, self.generator = "main", "as it was"

    def end(self, device, pool):
        if pool not in self.open_pools:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.open_pools.remove(pool)

    def empty_cache(self):
        assert not self.open_pools, "captures_underway.empty() INTERNAL ASSERT FAILED"
        self.emptied += 1

    def clone_state(self):
        return self.generator

    def graphsafe_set_state(self, state):
        self.generator = state


class Sum:
    """A step: adds up what it is given, and counts where it was computed."""

    def __init__(self, cuda):
        self.cuda, self.total, self.streams = cuda, torch.zeros(()), []

    def __call__(self, inputs):
        self.streams.append(self.cuda.stream_now)
        graph, out = self.cuda.recording, torch.zeros(())

        def compute():
            self.total += sum(t.sum() for part in inputs for t in part if t is not None)
            out.copy_(self.total)

        if graph is None:
            compute()
        elif self.cuda.failure is not None:
            raise RuntimeError("operation not permitted when stream is capturing\nmore words")
        else:
            graph.replay = compute
        return out


@pytest.fixture
def cuda(monkeypatch):
    fake = Cuda()
    fake.install(monkeypatch)
    return fake


def batch(value):
    return [(torch.full((2,), float(value)), torch.full((1,), value, dtype=torch.uint8), None)]


def test_a_captured_run_goes_the_way_of_an_eager_one(cuda):
    step, told = Sum(cuda), []
    capture = Capture(told.append)
    results = [capture(step, batch(value)) for value in range(1, 8)]
    assert [int(r) for r in results] == [3, 9, 18, 30, 45, 63, 84]  # each its own tensor
    assert step.streams == ["side"] * EAGER_STEPS + ["recording"]
    assert not told and not capture.failed and cuda.stream_now == "main"


def test_inputs_are_copied_so_that_a_batch_may_go(cuda):
    step = Sum(cuda)
    capture, first = Capture(print), batch(1)
    for _ in range(EAGER_STEPS + 1):
        capture(step, first)
    before = int(step.total)
    first[0][0].fill_(100)  # not what the recording reads
    assert int(capture(step, batch(2))) == before + 6
    assert int(first[0][0][0]) == 100


@pytest.mark.parametrize("failure", ["broken", "body"])
def test_a_failed_recording_is_told_once_and_leaves_nothing_behind(cuda, failure):
    cuda.failure = failure
    step, told = Sum(cuda), []
    capture = Capture(told.append)
    results = [capture(step, batch(value)) for value in range(1, 8)]
    assert [int(r) for r in results] == [3, 9, 18, 30, 45, 63, 84]
    assert told == [
        "steps are not captured but computed one by one: operation not permitted when stream is "
        "capturing"
    ]
    assert step.streams == ["side"] * EAGER_STEPS + ["recording"] + ["main"] * 4
    assert cuda.stream_now == "main" and not cuda.open_pools and cuda.emptied == 1
    assert cuda.generator == "as it was" and capture.graph is None and capture.failed


def test_a_recorded_network_lives_as_long_as_what_replays_it(cuda, monkeypatch):
    """A graph reads weights where they lie; who replays it must keep them there."""
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU()).eval()
    image, weights = torch.randn(1, 3, 8, 8), weakref.ref(network[0].weight)
    run, remarks = runtimes.graph(network, image, lambda logits: logits + 1)
    assert remarks == ["1 ReLUs within their convolutions"]
    del network
    gc.collect()
    assert weights() is not None
    del run
    gc.collect()
    assert weights() is None


def test_a_failed_recording_of_a_network_is_cleared_away(cuda, monkeypatch):
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    cuda.failure = "broken"
    network, image = torch.nn.Conv2d(3, 4, 3).eval(), torch.randn(1, 3, 8, 8)
    with pytest.raises(RecordingError, match="previous error"):
        runtimes.graph(network, image, lambda logits: logits)
    assert not cuda.open_pools and cuda.stream_now == "main"
