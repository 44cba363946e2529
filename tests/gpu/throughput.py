"""Images per second of training, beside a bare captured loop, and how busy the GPU is."""

import copy
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from common import (
    CONFIGS,
    ROOT,
    Part,
    Training,
    data_name,
    dataset_of,
    device_loader,
    endless,
    require_cuda,
    require_module,
    settings,
    synchronize,
)
from torch import nn
from yacs.config import CfgNode

from datasets import DeviceLoader

NETWORKS = ("rtlinearformer_base", "pidnet_s")
BATCHES = (16, 48)
WARM_UP, SECONDS = 12, 1.2
PROFILED = 50
EVENTS = {"kernel", "gpu_memcpy", "gpu_memset"}  # what keeps a GPU busy, as the profiler calls it


def run(part: Part) -> None:
    """The project's step, captured and eager, and the bare loop, in this process one by one."""
    for network in NETWORKS:
        resident = None
        for batch in (2,) if part.tiny else BATCHES:
            words = f"TRAIN.BATCH_SIZE_PER_GPU {batch}"
            config = settings(network, part.device, words)
            if resident is None:
                resident = dataset_of(config, boundary=network == "pidnet_s")
                loader = device_loader(config, resident, part.device)
            loader.sampler.batch_size = batch
            part.case(f"{network}, batch {batch}", rates, config, loader, part.device)
        del loader, resident


def rates(config: CfgNode, loader: DeviceLoader, device: torch.device) -> dict[str, Any]:
    """Images per second of every kind, and the project's over the bare loop's."""
    told: dict[str, Any] = {"data": data_name(config), "images_per_second": {}}
    kinds: dict[str, Callable[..., Any]] = {
        "captured": lambda: Project(config, "auto", device, loader),
        "bare": lambda: BareLoop(config, device),
        "eager": lambda: Project(config, "off", device, loader),
    }
    for kind, make in kinds.items():
        if kind != "eager" and device.type != "cuda":
            continue
        step = make()
        if kind == "captured":
            told["told"] = list(step.told)
        rate = images_per_second(step, loader, config.TRAIN.BATCH_SIZE_PER_GPU, device)
        told["images_per_second"][kind] = rate
        if kind == "captured":
            assert step.training.step.capture.graph is not None, step.told
            told["peak memory, bytes"] = torch.cuda.max_memory_allocated()
        del step
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    speeds = told["images_per_second"]
    if "bare" in speeds:
        told["captured over bare"] = speeds["captured"] / speeds["bare"]
        told["eager over bare"] = speeds["eager"] / speeds["bare"]
    return told


class Project:
    """The project's step, looked at as the program does."""

    def __init__(
        self, config: CfgNode, capture: str, device: torch.device, loader: DeviceLoader
    ) -> None:
        config = config.clone()
        config.defrost()
        config.TRAIN.CAPTURE = capture
        config.freeze()
        self.training = Training.begin(config, device, images=len(loader.dataset))
        self.told = self.training.told

    def __call__(self, batch: dict[str, Any]) -> None:
        """One step."""
        self.training.step(self.training.run, [batch])
        if self.training.step.is_due():
            self.training.step.collect()

    def finish(self) -> None:
        """Look at the rest."""
        self.training.step.collect(wait=True)


class BareLoop:
    """The same mathematics as a loop without a project: no guard, no report, no schedule.

    Forward pass in bfloat16, loss, backward pass, clipping, optimiser, averaged weights: recorded
    once, then replayed on copied batches.
    """

    def __init__(self, config: CfgNode, device: torch.device) -> None:
        training = Training.begin(config, device)
        self.model, self.criterion = training.run.model, training.step.criterion
        self.optimizer, self.clip = training.run.optimizer, config.TRAIN.CLIP_GRAD
        average = copy.deepcopy(self.model)
        self.averaged, self.live = (
            [t.detach() for t in (*m.parameters(), *m.buffers()) if t.is_floating_point()]
            for m in (average, self.model)
        )
        self.rate = torch.full((), 1e-3, device=device)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: list[torch.Tensor] = []

    def __call__(self, batch: dict[str, Any]) -> None:
        """One step."""
        given = [batch[key] for key in ("image", "label", "boundary") if key in batch]
        if not self.inputs:
            self.inputs = [t.clone() for t in given]
            self.record()
        for place, value in zip(self.inputs, given, strict=True):
            place.copy_(value, non_blocking=True)
        self.graph.replay()

    def record(self) -> None:
        """Warm up on a stream aside, as recording asks for, then record."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self.compute()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.compute()

    def compute(self) -> None:
        """The mathematics."""
        image, label, *boundary = self.inputs
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(image.device.type, torch.bfloat16):
            outputs = self.model.forward_train(image)
        loss, _ = self.criterion(outputs, label, *(boundary or [None]))
        loss.backward()
        if self.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip, foreach=True)
        self.optimizer.step()
        difference = torch._foreach_sub(self.live, self.averaged)
        torch._foreach_mul_(difference, self.rate)
        torch._foreach_add_(self.averaged, difference)

    def finish(self) -> None:
        """Nothing is left to do."""


def images_per_second(step: Any, loader: DeviceLoader, batch: int, device: torch.device) -> float:
    """Batches of `loader` through `step` for SECONDS, loading included."""
    source, count = endless(loader), 0
    tiny = device.type == "cpu"
    for _ in range(2 if tiny else WARM_UP):
        step(next(source))
    synchronize(device)
    began = time.monotonic()
    while time.monotonic() - began < (0.2 if tiny else SECONDS):
        for _ in range(1 if tiny else 10):
            step(next(source))
            count += batch
        if device.type == "cuda":
            _keep_behind(device)
    step.finish()
    synchronize(device)
    return count / (time.monotonic() - began)


_marks: list[torch.cuda.Event] = []


def _keep_behind(device: torch.device) -> None:
    """Wait for the steps before the last ten, so that the queue does not outlast the clock."""
    mark = torch.cuda.Event()
    mark.record()
    _marks.append(mark)
    if len(_marks) > 1:
        _marks.pop(0).synchronize()


def program(part: Part) -> None:
    """tools/train.py as a user starts it."""
    for network in NETWORKS[:1] if part.tiny else NETWORKS:
        part.case(network, train, network, part.device)


def train(network: str, device: torch.device) -> dict[str, Any]:
    """Images per second that metrics.jsonl tells of the epochs after the first."""
    require_module("tensorboardX", "tools/train.py")
    tiny = device.type == "cpu"
    with tempfile.TemporaryDirectory() as folder:
        epochs, batch = (2, 4) if tiny else (8, 16)
        words = f"TRAIN.BATCH_SIZE_PER_GPU {batch} TRAIN.END_EPOCH {epochs} OUTPUT_DIR {folder} "
        words += "TRAIN.EVAL_EVERY 1000 TRAIN.CAPTURE auto TEST.BATCH_SIZE_PER_GPU 4"
        config = settings(network, device, words)
        file = Path(folder) / "config.yaml"
        file.write_text(config.dump(), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "tools/train.py", "--cfg", str(file)],
            cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"exit {done.returncode}: {(done.stdout + done.stderr)[-1500:]}")
        (metrics,) = Path(folder).rglob("metrics.jsonl")
        records = [json.loads(line) for line in metrics.read_text().splitlines()]
    speeds = [record["images_per_second"] for record in records]
    losses = [record["loss"] for record in records]
    assert len(speeds) == epochs and None not in losses and losses[-1] < losses[0], losses
    told = [line for line in done.stdout.splitlines() if "captured" in line or "process" in line]
    return {"config": CONFIGS[network], "images_per_second": speeds, "losses": losses, "told": told}


def busy(part: Part) -> None:
    """Share of the time in which the GPU computes."""
    for network in NETWORKS:
        for capture in ("auto", "off"):
            name = f"{network}, {'captured' if capture == 'auto' else 'eager'}"
            part.case(name, share, network, capture, part.device)


def share(network: str, capture: str, device: torch.device) -> dict[str, Any]:
    """Union of the intervals of kernels and copies over wall time, PROFILED steps."""
    require_cuda(device, "the busy share of a GPU")
    config = settings(network, device, "TRAIN.BATCH_SIZE_PER_GPU 16")
    loader = device_loader(config, dataset_of(config, boundary=network == "pidnet_s"), device)
    step, source = Project(config, capture, device, loader), endless(loader)
    for _ in range(WARM_UP):
        step(next(source))
    step.finish()
    with tempfile.TemporaryDirectory() as folder:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            step(next(source))  # the first step under a profiler is slow
            synchronize(device)
            begin = time.time_ns()
            for _ in range(PROFILED):
                step(next(source))
            step.finish()
            synchronize(device)
            end = time.time_ns()
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    spans = [(e["ts"], e["ts"] + e["dur"]) for e in events if e.get("cat") in EVENTS]
    assert spans, "the profiler saw no kernel"
    wall = (end - begin) / 1e3  # in microseconds, as the trace
    spans = last_of(spans, wall)
    span = max(b for _, b in spans) - min(a for a, _ in spans)
    taken = union(spans)
    return {
        "busy share": taken / wall,
        "busy share from first to last kernel": taken / span,
        "milliseconds per step": wall / 1e3 / PROFILED,
        "kernels and copies per step": len(spans) / PROFILED,
    }


def last_of(spans: Iterable[tuple[float, float]], length: float) -> list[tuple[float, float]]:
    """Those that begin within `length` before the end of all."""
    spans = list(spans)
    first = max(b for _, b in spans) - length
    return [(a, b) for a, b in spans if a >= first]


def union(spans: Iterable[tuple[float, float]]) -> float:
    """Length that intervals cover together."""
    return sum(b - a for a, b in _merged(sorted(spans)))


def _merged(spans: list[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    begin = end = None
    for a, b in spans:
        if end is None or a > end:
            if end is not None:
                yield begin, end
            begin, end = a, b
        else:
            end = max(end, b)
    if end is not None:
        yield begin, end
