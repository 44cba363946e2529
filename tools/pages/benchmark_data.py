"""Measure how fast training samples are made, against the work of the published loader.

    python tools/pages/benchmark_data.py --cfg configs/camvid/pidnet_s_camvid_360x480.yaml \
        --record docs/records/data_camvid.json DATASET.ROOT data/
    python tools/pages/benchmark_data.py --page docs/performance.md

The first command makes the same samples (same images, same scales) in turns by the published
loader's work and by ours without a cache, with a cache in memory and with one on disk; in one
process and one thread. Times are CPU time of the process, so that other programs disturb them
little. The second writes the page from all records docs/records/data_*.json.
"""

import argparse
import contextlib
import functools
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import _init_paths
import cv2
import torch
from builders import build_dataset
from pages.performance_page import write_page
from pages.published_loading import PublishedLoading

import datasets.segmentation
import datasets.transforms
from configs import get_config
from configs.arguments import parse_arguments
from datasets import (
    DatasetMeta,
    DeviceLoader,
    Draw,
    EpochBatchSampler,
    SceneDataset,
    SegmentationDataset,
    TrainTransform,
    make_cache,
    quick_check,
)
from utils.errors import InputError
from utils.records import environment, require_folder, write_json

PUBLISHED = "published"
WAYS = (PUBLISHED, "none", "ram", "disk")  # the loader's work; ours with DATASET.CACHE

# what is timed: (owner, its attribute, the step that it belongs to)
THEIR_STEPS = [
    (PublishedLoading, "read_image", "decode image"),
    (PublishedLoading, "read_label", "decode label"),
    (PublishedLoading, "encode", "class indices"),
    (PublishedLoading, "boundary", "boundary"),
    (PublishedLoading, "scale", "scale"),
    (PublishedLoading, "crop", "pad and crop"),
    (PublishedLoading, "normalise", "normalise"),
    (PublishedLoading, "flip", "flip and copy"),
]
OUR_STEPS = [
    (datasets.segmentation, "read_image", "decode image"),
    (datasets.segmentation, "read_label", "decode label"),
    (DatasetMeta, "encode", "class indices"),
    (datasets.transforms, "label_boundary", "boundary"),
    (TrainTransform, "_fit", "scale"),
    (datasets.transforms.Normalize, "__call__", "normalise"),
    (datasets.transforms, "_mirror", "flip and copy"),
]
STEPS = tuple(dict.fromkeys(step for _, _, step in THEIR_STEPS))


def main() -> int:
    args = parse_args()
    if args.page:
        return write_page(args.page, WAYS, (*STEPS, "rest"), check=args.check)
    if not args.cfg:
        raise InputError("what is to be done? --cfg measures, --page writes the page of records")
    config = get_config(args.cfg, args.opts)
    dataset = build_dataset(config, train=True, need_boundary=True)
    if not isinstance(dataset, SegmentationDataset):
        raise InputError(f"{config.DATASET.DATASET} has no files; choose a dataset that has")
    quick_check(dataset)
    if args.record:
        require_folder(os.path.dirname(args.record) or ".", "the folder of --record")
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    count = min(args.images, len(dataset))
    with tempfile.TemporaryDirectory() as folder:
        makers = sample_makers(dataset, folder)
        seconds = take_turns(makers, count, args.rounds)
        steps = {
            name: profile(makers[name], THEIR_STEPS if name == PUBLISHED else OUR_STEPS, count)
            for name in (PUBLISHED, "none", "ram")
        }
    size = dataset.load(0).label.shape
    rule = dataset.transform
    record = {
        "kind": "training data",
        "dataset": dataset.meta.name,
        "about": args.about,
        "command": shlex.join(["python", "tools/pages/benchmark_data.py", *sys.argv[1:]]),
        "config": shlex.join(args.cfg),
        "image_size": list(size),
        "crop_size": list(rule.crop_size),
        "images": count,
        "rounds": args.rounds,
        "milliseconds": {
            name: [1e3 * value / count for value in values] for name, values in seconds.items()
        },
        "ratio": {
            name: statistics.median(
                a / b for a, b in zip(seconds[PUBLISHED], seconds[name], strict=True)
            )
            for name in WAYS[1:]
        },
        "steps_milliseconds": steps,
        "device": device_speed(dataset, config.TRAIN.BATCH_SIZE_PER_GPU, args.rounds),
        "environment": environment(),
    }
    for name in WAYS:
        each = statistics.median(record["milliseconds"][name])
        ratio = f", {record['ratio'][name]:.2f} times the published" if name in WAYS[1:] else ""
        print(f"{name:10} {each:7.2f} ms per image, {1e3 / each:7.1f} images/s{ratio}")
    if args.record:
        write_json(args.record, record)
        print(f"wrote {args.record}")
    return 0


def sample_makers(
    dataset: SegmentationDataset, folder: str
) -> dict[str, Callable[[int, int], object]]:
    """(index, seed) -> sample, for each of WAYS."""

    def ours(source: SceneDataset, index: int, seed: int) -> object:
        return source[Draw(index, seed)]

    makers = {PUBLISHED: PublishedLoading(dataset).sample}
    for kind in WAYS[1:]:
        cached = dataset.with_cache(make_cache(kind, len(dataset), 16.0, folder))
        makers[kind] = functools.partial(ours, cached)
    return makers


def take_turns(
    makers: dict[str, Callable[[int, int], object]], count: int, rounds: int
) -> dict[str, list[float]]:
    """CPU seconds for `count` samples, per way and round; a round before them is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in makers}
    for turn in range(rounds + 1):
        for name, make in makers.items():
            began = time.process_time()
            for index in range(count):
                make(index, turn * count + index)
            if turn:
                seconds[name].append(time.process_time() - began)
    return seconds


def profile(
    make: Callable[[int, int], object], steps: list[tuple[Any, str, str]], count: int
) -> dict[str, float]:
    """CPU milliseconds per sample in each step; what no step accounts for is `rest`."""
    spent: Counter[str] = Counter()
    with contextlib.ExitStack() as stack:
        for owner, name, step in steps:
            stack.enter_context(_timed(owner, name, step, spent))
        began = time.process_time()
        for index in range(count):
            make(index, index)
        whole = time.process_time() - began
    result = {step: 1e3 * spent[step] / count for step in STEPS if step in spent}
    return result | {"rest": 1e3 * (whole - spent.total()) / count}


@contextlib.contextmanager
def _timed(owner: Any, name: str, step: str, spent: Counter) -> Iterator[None]:
    """Within, `owner.name` adds the time it takes to `spent[step]`; no two of them nest."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def measured(*args: Any, **more: Any) -> Any:
        began = time.process_time()
        try:
            return original(*args, **more)
        finally:
            spent[step] += time.process_time() - began

    setattr(owner, name, measured)
    try:
        yield
    finally:
        setattr(owner, name, original)


def device_speed(dataset: SegmentationDataset, batch: int, rounds: int) -> dict[str, Any]:
    """Images per second of TRAIN.AUGMENT_ON device, all scenes resident (wall time)."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sampler = EpochBatchSampler(len(dataset), min(batch, len(dataset)), seed=0)
    loader = DeviceLoader(dataset, sampler, device, limit=16.0)
    if loader.resident is None:
        return {}
    rates = []
    for epoch in range(rounds + 1):
        sampler.set_epoch(epoch)
        wait = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
        wait()
        began = time.perf_counter()
        for number, _ in enumerate(loader, start=1):
            if number == 16:
                break
        wait()
        rates.append(number * sampler.batch_size / (time.perf_counter() - began))
    facts = environment(device)
    return {
        "device": facts["device"],
        "batch": sampler.batch_size,
        "images_per_second": rates[1:],
        "resident_bytes": loader.resident.bytes,
    }


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure how fast training samples are made.")
    parser.add_argument("--images", type=int, default=64, help="per round (default 64)")
    parser.add_argument("--rounds", type=int, default=7, help="(default 7)")
    parser.add_argument("--about", default="", help="a sentence about the images, for the page")
    parser.add_argument("--record", metavar="JSON", help="write the measurement there")
    parser.add_argument("--page", metavar="MD", help="write the page of all records and end")
    parser.add_argument("--check", action="store_true", help="with --page: only compare")
    args = parse_arguments(parser, required=False, about="configuration to measure")
    if args.images < 1 or args.rounds < 1:
        raise InputError(f"--images {args.images} --rounds {args.rounds}: accepted: 1 and above")
    return args


if __name__ == "__main__":
    _init_paths.run_main(main)
