"""Write docs/speed.md and its picture from the records of models/speed/speed.py:

    python tools/pages/speed_page.py            writes both
    python tools/pages/speed_page.py --check    says by its exit status whether the page is current

docs/records/speed_*.json are records of the script (--out); docs/records/h200_*.json is one that
was taken before the script had these forms.
"""

import argparse
import io
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import _init_paths
import matplotlib
import torch
import yaml
from matplotlib.figure import Figure

from models import build_model, fuse
from models.speed.timing_report import ENDS, is_busy, label, sorted_rows
from utils.records import atomic_file, atomic_write
from utils.roofline import CARDS, PRECISIONS, expected_ms, floor_ms, trace

DOCS = _init_paths.ROOT / "docs"
CARD_RECORD = DOCS / "records/h200_speed_1024x2048.json"
SIZE = (1024, 2048)
COLUMNS = {
    "published eager fp32": "as published, fp32",
    "fused fp16 nhwc": "eager, fp16",
    "graph fp32 nhwc": "graph, fp32",
    "graph fp16 nhwc": "graph, fp16",
    "graph fp16 nhwc +argmax": "graph, fp16, + resize + argmax",
}
HEAD = """# How fast the networks are

<!-- Written by tools/pages/speed_page.py; edit that program. -->

Time on your own machine, several networks in one table:

    python models/speed/speed.py --a pidnet_s --a rtlinearformer_slim --c 19 --r 1024 2048

`--form` chooses how they run: `published` (as trained, eager, as published scripts time them),
`eager` (norms folded, channels-last), `graph` (a CUDA graph whose convolutions take bias, residual
and ReLU along), `compiled`, `onnxruntime`, `openvino`. `--lines` chooses what is timed: the logits,
with their resize to the image, with the argmax after that, or the whole way of a frame from 8-bit
pixels to 8-bit class ids in the computer's memory. `--estimate CARD` measures nothing, but tells
what a card that is not at hand can do at best.

Evaluation takes the same door, `utils/deploy.py`: a CUDA graph on a GPU; `TEST.RUNTIME` and
`TEST.PRECISION` choose another.
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    card = json.loads(CARD_RECORD.read_text(encoding="utf-8"))
    published = yaml.safe_load((DOCS / "published.yaml").read_text(encoding="utf-8"))
    files = sorted((DOCS / "records").glob("speed_*.json"))
    records = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    parts = [HEAD, card_section(card), estimate_section(card), *map(machine_section, records)]
    text = "\n".join(parts)
    if args.check:
        path = DOCS / "speed.md"
        return int(not path.is_file() or path.read_text(encoding="utf-8") != text)
    atomic_write(DOCS / "speed.md", text)
    with atomic_file(DOCS / "images/speed.png") as stream:
        stream.write(picture(card, published))
    print(f"wrote docs/speed.md and docs/images/speed.png from {1 + len(files)} records")
    return 0


def card_section(record: dict[str, Any]) -> str:
    """What was measured on a card."""
    height, width = record["size"]
    lines = [
        f"## {record['device']}, {width}x{height}, one image",
        "",
        "![Published accuracy over measured time](images/speed.png)",
        "",
        f"Milliseconds, torch {record['torch']}; fp32 convolutions run as TF32.",
        "",
        f"| Network | {' | '.join(COLUMNS.values())} |",
        f"|---|{'--:|' * len(COLUMNS)}",
    ]
    for name, times in sorted(record["models"].items(), key=lambda m: m[1]["graph fp16 nhwc"]):
        options = record.get("options", {}).get(name)
        note = f" ({', '.join(f'{k} {v}' for k, v in options.items())})" if options else ""
        cells = (f"{times[column]:.2f}" for column in COLUMNS)
        lines.append(f"| `{name}`{note} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def estimate_section(record: dict[str, Any]) -> str:
    """The least and the expected time on every known card, from shapes and published rates."""
    kinds = {"tf32": "fp32", "fp16": "fp16"}
    lines = [
        f"## What cards can do at best, {SIZE[1]}x{SIZE[0]}, one image",
        "",
        "Computed, not measured: milliseconds up to the logits that no implementation beats which "
        "runs layer",
        "after layer, and after the slash an estimate of a CUDA graph by PyTorch (`floor_ms` and",
        "`expected_ms` in utils/roofline.py, from published bandwidth and peak). On an H200 graphs "
        "took 1.9 to",
        "3.4 times the estimate; it ranks networks, and shows whether a card is too small.",
        "",
        f"| Network | {' | '.join(f'{c}, {k}' for c in CARDS for k in kinds.values())} |",
        f"|---|{'--:|' * (2 * len(CARDS))}",
    ]
    rows = []
    for name in record["models"]:
        with torch.device("meta"):
            network = fuse(build_model(name, 19))
        traces = {kind: trace(network, SIZE, 1, PRECISIONS[kind]) for kind in kinds}
        cells, order = [], floor_ms(traces["fp16"], CARDS["h200"], "fp16")
        for card in CARDS.values():
            for kind, layers in traces.items():
                floor, expected = (f(layers, card, kind) for f in (floor_ms, expected_ms))
                cells.append(f"{floor:.2f} / {expected:.1f}")
        rows.append((order, f"| `{name}` | {' | '.join(cells)} |"))
    return "\n".join([*lines, *(row for _, row in sorted(rows)), ""])


def machine_section(record: dict[str, Any]) -> str:
    """What models/speed/speed.py measured on a machine."""
    facts, (batch, _, height, width) = record["environment"], record["input"]
    ends = [end for end in ENDS if any(key.endswith(f" {end}") for key in record["lines"])]
    gains = record["time_ratios"]
    busy = ["Other programs ran as well, so nothing is ranked."] if is_busy(record) else []
    lines = [
        f"## {facts['device']}, {facts['cpu_threads']} threads, {width}x{height}, batch {batch}",
        "",
        f"    python models/speed/{' '.join(record['command'])}",
        "",
        f"Milliseconds (median), torch {facts['torch']}, Python {facts['python']}. The last column "
        "is the time of the network as published (fp32, unfused, eager) over that of the row, up "
        "to the class map, both from this one run. A form has no line where the cell is empty.",
        *busy,
        "",
        f"| Network | Form | Precision | {' | '.join(ENDS[end] for end in ends)} "
        "| Published over this |",
        f"|---|---|---|{'--:|' * (len(ends) + 1)}",
    ]
    for row in sorted_rows(record, ends[0]):
        times = (record["lines"].get(label(*row, end)) for end in ends)
        ratios = (gains.get(f"{label(*row, end)} / {published}") for end, published in [
            (end, label(row[0], "published", "fp32", end)) for end in reversed(ends)
        ])  # fmt: skip
        ratio = next(filter(None, ratios), None)
        cells = ["" if t is None else f"{t['median_ms']:.1f}" for t in times]
        gain = f"{1 / ratio['median']:.2f}" if ratio else ""
        lines.append(f"| `{row[0]}` | {row[1]} | {row[2]} | {' | '.join([*cells, gain])} |")
    return "\n".join([*lines, ""])


def picture(record: dict[str, Any], published: dict[str, Any]) -> bytes:
    """Published accuracy over measured time, as PNG."""
    column = "graph fp16 nhwc +argmax"
    points = {
        name: (times[column], published[name]["cityscapes"])
        for name, times in record["models"].items()
        if "cityscapes" in published.get(name, {})
    }
    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False}):
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        axes.spines["right"].set_visible(False)
        for name, (milliseconds, miou) in points.items():
            axes.plot(milliseconds, miou, "o", color="tab:blue")
            shape = " (earlier shape)" if name in record.get("options", {}) else ""
            axes.annotate(name + shape, (milliseconds, miou), (4, 4), textcoords="offset points")
        if max(m for m, _ in points.values()) > 10 * min(m for m, _ in points.values()):
            axes.set_xscale("log")
            axes.set_xticks([1, 2, 3, 5, 10, 20, 50], labels=["1", "2", "3", "5", "10", "20", "50"])
            axes.minorticks_off()
            axes.set_xlim(0.8 * min(m for m, _ in points.values()), 70)
        axes.set_xlabel(f"class map of 1024x2048, fp16, measured on one {record['device']}, ms")
        axes.set_ylabel("Cityscapes val mIoU, published, %")
        axes.grid(alpha=0.3)
        stream = io.BytesIO()
        figure.savefig(stream, format="png", dpi=120)
    return stream.getvalue()


if __name__ == "__main__":
    _init_paths.run_main(main)
