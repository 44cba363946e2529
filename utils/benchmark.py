"""Timing, memory and operation counts of a function or a network.

A time depends on everything around it, so what is to be compared is measured alternately in one
run, and every number is a distribution: median, 10th and 90th percentile.
"""

import copy
import itertools
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from .errors import InputError

try:
    import resource
except ImportError:  # Windows
    resource = None

Function = Callable[[], Any]


def measure(
    fn: Function,
    *,
    device: torch.device | str = "cpu",
    warmup_seconds: float = 1.0,
    min_seconds: float = 3.0,
    min_iterations: int = 10,
    images: int = 1,
) -> dict[str, Any]:
    """Time of one call of `fn`; see `alternate`."""
    return alternate(
        {"fn": fn},
        1,
        device=device,
        warmup_seconds=warmup_seconds,
        min_seconds=min_seconds,
        min_iterations=min_iterations,
        images=images,
    )["fn"]


def alternate(
    functions: Mapping[str, Function],
    rounds: int = 10,
    *,
    device: torch.device | str = "cpu",
    warmup_seconds: float = 1.0,
    min_seconds: float = 3.0,
    min_iterations: int = 10,
    images: int = 1,
    show: bool = False,
) -> dict[str, dict[str, Any]]:
    """Times of several functions, taken in turn so that drift of the machine hits all alike.

    Every function is warmed up (its first call, which may compile, does not count), then each round
    runs a block of calls of every function, in an order that moves on by one per round. On CUDA the
    calls of a block are queued without waiting and timed with events between them, after the
    device has been synchronised; on the CPU each call is timed by the clock.

    Args:
        functions: by name; each runs on `device` and leaves its result there.
        rounds: blocks per function.
        warmup_seconds: per function.
        min_seconds, min_iterations: measured per function, over all rounds together; the seconds
            become a number of calls by the median time of a warm-up call.
        images: images that one call handles, for `fps`.
        show: a progress bar, where stderr is a terminal.

    Returns:
        By name: median_ms, p10_ms, p90_ms, mean_ms, fps (images over the median), iterations, and
        round_ms, the median of every round.
    """
    if rounds < 1 or min_iterations < 1:
        raise InputError(f"rounds {rounds} and iterations {min_iterations} must be at least 1")
    device = torch.device(device)
    names = list(functions)
    iterations = {}
    bar = tqdm(total=(1 + rounds) * len(names), leave=False, disable=None if show else True)
    for name in names:
        bar.set_description(f"warm-up {name}")
        bar.update()
        seconds = _warm_up(functions[name], device, warmup_seconds)
        wanted = max(min_iterations, min_seconds / seconds)
        iterations[name] = int(np.ceil(wanted / rounds))
    times: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            bar.set_description(f"round {turn + 1} of {rounds}")
            bar.update()
            times[name].append(_block(functions[name], device, iterations[name]))
    bar.close()
    return {name: _statistics(blocks, images) for name, blocks in times.items()}


def time_ratio(times: Mapping[str, Any], reference: Mapping[str, Any]) -> dict[str, float]:
    """Time of one function over another's from the same `alternate`.

    Returns:
        median, low and high of the ratios of the rounds' medians, and the ratio at the 10th
        percentile, which a machine with other work on it disturbs least.
    """
    ratios = np.divide(times["round_ms"], reference["round_ms"])
    return {
        "median": float(np.median(ratios)),
        "low": float(ratios.min()),
        "high": float(ratios.max()),
        "p10": times["p10_ms"] / reference["p10_ms"],
    }


def peak_memory(fn: Function, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Memory at its highest, in bytes, and what was counted.

    CUDA: tensors allocated on the device during one call of `fn`, weights included. CPU: resident
    memory of the whole process since it started, libraries included, after one call of `fn`; None
    where the system does not tell.
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        fn()
        torch.cuda.synchronize(device)
        return {
            "bytes": torch.cuda.max_memory_allocated(device),
            "what": "tensors allocated on the device",
        }
    fn()
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    peak = resource and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"bytes": peak, "what": "resident memory of the whole process"}


def peak_work(device: torch.device, dtype: torch.dtype) -> dict[str, tuple[Function, int]]:
    """What comes near the peak of a machine, by name, and its operations: a large product of
    matrices and a wide convolution, of which one or the other is the faster."""
    gpu = device.type == "cuda"
    side, channels, pixels = (8192, 512, 128) if gpu else (1024, 256, 64)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
    conv = conv.to(device, dtype, memory_format=torch.channels_last)
    image = torch.randn(1, channels, pixels, pixels, device=device)
    image = image.to(dtype, memory_format=torch.channels_last)
    return {
        "product": (lambda: a @ b, 2 * side**3),
        "convolution": (lambda: conv(image), 2 * 9 * channels**2 * pixels**2),
    }


def count_macs(model: nn.Module, size: tuple[int, int]) -> int:
    """Multiply-accumulates of `model` for one 3-channel image of `size` (height, width).

    Convolutions and matrix products only, half of the FLOPs that PyTorch counts; pooling, norms,
    activations and resizes are left out, also where a module says by `is_pooling` that its products
    are a pooling. Runs on the meta device: no computation, any size.
    """
    shadow = copy.deepcopy(model).to("meta").eval()
    dtype = next((p.dtype for p in shadow.parameters()), torch.float32)
    image = torch.empty(1, 3, *size, dtype=dtype, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        shadow(image)
    pools = (name for name, module in shadow.named_modules() if hasattr(module, "is_pooling"))
    counts, root = counter.get_flop_counts(), type(shadow).__name__
    pooling = sum(sum(counts.get(f"{root}.{name}", {}).values()) for name in pools)
    return (counter.get_total_flops() - pooling) // 2


def count_parameters(model: nn.Module) -> int:
    """Numbers in the parameters of `model`; buffers are not counted."""
    return sum(parameter.numel() for parameter in model.parameters())


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _warm_up(fn: Function, device: torch.device, seconds: float) -> float:
    """Run `fn` for `seconds` after its first call; returns the median time of a call."""
    fn()
    _synchronize(device)
    ticks = [time.perf_counter()]
    while len(ticks) == 1 or ticks[-1] - ticks[0] < seconds:
        fn()
        _synchronize(device)
        ticks.append(time.perf_counter())
    return max(float(np.median(np.diff(ticks))), 1e-7)


def _block(fn: Function, device: torch.device, iterations: int) -> np.ndarray:
    """Milliseconds of each of `iterations` successive calls."""
    _synchronize(device)
    if device.type == "cuda":
        events = [torch.cuda.Event(enable_timing=True) for _ in range(iterations + 1)]
        events[0].record()
        for event in events[1:]:
            fn()
            event.record()
        _synchronize(device)
        pairs = itertools.pairwise(events)
        return np.array([before.elapsed_time(after) for before, after in pairs])
    ticks = np.empty(iterations + 1)
    ticks[0] = time.perf_counter()
    for index in range(iterations):
        fn()
        ticks[index + 1] = time.perf_counter()
    return np.diff(ticks) * 1e3


def _statistics(blocks: list[np.ndarray], images: int) -> dict[str, Any]:
    times = np.concatenate(blocks)
    p10, median, p90 = np.percentile(times, (10, 50, 90))
    return {
        "median_ms": float(median),
        "p10_ms": float(p10),
        "p90_ms": float(p90),
        "mean_ms": float(times.mean()),
        "fps": float(images * 1e3 / median),
        "iterations": len(times),
        "round_ms": [float(np.median(block)) for block in blocks],
    }
