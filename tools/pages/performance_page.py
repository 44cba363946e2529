"""docs/performance.md, from the records of tools/pages/benchmark_data.py."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils.records import atomic_write

HEAD = """# How fast training data is made

<!-- Written by tools/pages/benchmark_data.py --page docs/performance.md; edit that program. -->

One sample is: read and decode image and label, class indices, boundary target, random scale, crop
with padding, flip, normalisation to float32 planes. "Published" is that work as the PIDNet
repository does it (whole image scaled in the loader, float arithmetic), written anew in
`tools/pages/published_loading.py`. Both make the same samples (same images, same scales) in turns,
in one process and one thread. Times are CPU time; the ratio is the median over the rounds. The
machine may be shared: compare numbers of one table, not of two.

What ours does otherwise:

- scale, window and flip are drawn first; only the window is scaled, and the boundary target is
  made on the window alone (both equal to the whole image's, up to interpolation);
- everything is uint8 until normalisation, which is one table per channel;
- `DATASET.CACHE ram` keeps decoded images in memory that all loader processes share, `disk` in
  mapped files that outlive the run; `DATASET.CACHE_GB` limits both;
- `TRAIN.AUGMENT_ON device` keeps the decoded images on the training device where they fit and
  makes whole batches there; otherwise loader processes send it the source windows as uint8.
"""
NAMES = {
    "published": "published work",
    "none": "ours",
    "ram": "ours, `DATASET.CACHE ram`",
    "disk": "ours, `DATASET.CACHE disk`",
}


def write_page(path: str | Path, ways: Sequence[str], steps: Sequence[str], check: bool) -> int:
    """Write the page, or with `check` return 1 if it is not what the records give."""
    path = Path(path)
    files = sorted((path.parent / "records").glob("data_*.json"))
    if not files:
        raise FileNotFoundError(
            f"{path.parent / 'records'} holds no data_*.json; --record makes it"
        )
    records = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    text = HEAD + "".join(_section(record, ways, steps) for record in records)
    if not check:
        atomic_write(path, text)
        print(f"wrote {path} from {len(files)} records")
        return 0
    return int(not path.is_file() or path.read_text(encoding="utf-8") != text)


def _section(record: dict[str, Any], ways: Sequence[str], steps: Sequence[str]) -> str:
    high, wide = record["image_size"]
    rows, columns = record["crop_size"]
    facts = record["environment"]
    lines = [
        "",
        f"## {record['dataset']}, {wide}x{high}, crop {columns}x{rows}",
        "",
        *([record["about"], ""] if record["about"] else []),
        f"    {record['command']}",
        "",
        f"{facts['device']}, one thread, {record['images']} images, {record['rounds']} rounds; "
        f"Python {facts['python']}, numpy {facts['numpy']}, torch {facts['torch']}.",
        "",
        "| | ms per image | images/s and core | times published |",
        "|---|--:|--:|--:|",
    ]
    for way in ways:
        each = statistics.median(record["milliseconds"][way])
        ratio = record["ratio"].get(way)
        times = "" if ratio is None else f"{ratio:.2f}"
        lines.append(f"| {NAMES[way]} | {each:.2f} | {1e3 / each:.1f} | {times} |")
    profiles = record["steps_milliseconds"]
    lines += [
        "",
        "Where the time goes, CPU milliseconds per image:",
        "",
        f"| step | {' | '.join(NAMES[way] for way in profiles)} |",
        f"|---|{'--:|' * len(profiles)}",
    ]
    for step in steps:
        cells = (f"{p[step]:.2f}" if step in p else "" for p in profiles.values())
        lines.append(f"| {step} | {' | '.join(cells)} |")
    device = record["device"]
    if device:
        rate = statistics.median(device["images_per_second"])
        on_cpu = device["device"] == facts["device"]
        lines += [
            "",
            f"`TRAIN.AUGMENT_ON device`, all images resident ({device['resident_bytes'] / 1e9:.2f} "
            f"GB), batches of {device['batch']} on {device['device']}: {rate:.1f} images/s.",
            *(["That is a CPU, where this path only shows that it is right."] if on_cpu else []),
        ]
    return "\n".join(lines) + "\n"
