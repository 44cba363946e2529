"""Export networks in every format that runs on this CPU, and time the files in turn.

    python tools/pages/benchmark_exports.py pidnet_s rdrnet_s --r 512 1024 \
        --out docs/records/exports_cpu_512x1024.json

Each network gets random weights for 19 classes. Its files are written and checked by
`tools/export.py`, 8 bits with ranges seen on drawn scenes, then run in one alternating measurement,
from a frame to a class map, beside the network as published: unfused, float32, eager, from the
normalised image to the class map. `tools/pages/make_tables.py` makes the table of docs/export.md.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import _init_paths
import cv2
import numpy as np
import torch

from datasets.synthetic import draw_scene
from models import build_model
from utils.benchmark import alternate, time_ratio
from utils.export import FORMATS
from utils.exported import open_file
from utils.records import environment, write_json

CLASSES = 19
# In float16 PyTorch and ONNX Runtime compute on a CPU, if at all, many times slower.
FILES = {
    "fp32": ("onnx", "openvino", "torch", "aoti"),
    "bf16": ("openvino", "torch", "aoti"),
    "fp16": ("openvino",),
    "int8": ("onnx", "openvino"),
}
PUBLISHED = "published"
ROUNDS = 10


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("networks", metavar="NAME", nargs="+")
    parser.add_argument("--r", metavar=("H", "W"), type=int, nargs=2, default=(512, 1024))
    parser.add_argument("--seconds", type=float, default=4.0, help="measured per file")
    parser.add_argument("--out", metavar="FILE", type=Path, required=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scenes = draw_scenes(Path(folder) / "scenes")
        functions, facts = {}, {}
        for name in args.networks:
            functions[f"{name} {PUBLISHED} fp32"] = published(name, args.r)
            for precision, kinds in FILES.items():
                out = Path(folder) / precision
                export(name, args.r, precision, kinds, scenes, out)
                for kind in kinds:
                    key = f"{name} {kind} {precision}"
                    functions[key], facts[key] = opened(kind, precision, out, name)
        times = alternate(
            functions, ROUNDS, warmup_seconds=1.0, min_seconds=args.seconds, show=True
        )
    for key in facts:
        reference = times[f"{key.split()[0]} {PUBLISHED} fp32"]
        facts[key]["time_ratio"] = time_ratio(times[key], reference)
    record = {
        "size": args.r,
        "files": facts,
        "times": times,
        "environment": environment(torch.device("cpu")),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }
    write_json(args.out, record)
    print(f"wrote {args.out}")
    return 0


def draw_scenes(folder: Path, count: int = 30) -> Path:
    """`folder` with pictures of streets."""
    folder.mkdir()
    for index in range(count):
        image, _ = draw_scene(index, height=512, width=1024)
        cv2.imwrite(str(folder / f"{index}.png"), image[..., ::-1])
    return folder


def published(name: str, size: tuple[int, int]) -> Callable[[], Any]:
    """The network as published scripts run it, up to the class map."""
    torch.manual_seed(0)
    model = build_model(name, CLASSES).eval()
    image = torch.randn(1, 3, *size)

    def run() -> Any:
        with torch.inference_mode():
            return model.upsample(model(image), size).argmax(1)

    return run


def export(
    name: str,
    size: tuple[int, int],
    precision: str,
    kinds: tuple[str, ...],
    scenes: Path,
    out: Path,
) -> None:
    """Run tools/export.py. Raises CalledProcessError where a file fails its check."""
    words = ["--arch", name, "--c", CLASSES, "--r", *size, "--precision", precision, "--out", out]
    words += ["--calibrate", scenes] if precision == "int8" else []
    script = str(_init_paths.ROOT / "tools/export.py")
    command = [sys.executable, script, "--format", *kinds, *map(str, words)]
    subprocess.run(command, check=True)


def opened(
    kind: str, precision: str, folder: Path, name: str
) -> tuple[Callable[[], Any], dict[str, Any]]:
    """A file as a function without arguments, and its size and how it was checked."""
    reports = (json.loads(p.read_text(encoding="utf-8")) for p in folder.glob("*.gate.json"))
    (told,) = (
        report
        for report in reports
        if (report["description"]["architecture"], report["format"]) == (name, kind)
    )
    endings = FORMATS[kind].endings
    stem = told["file"].removesuffix(endings[0])
    parts = [folder / f"{stem}{ending}" for ending in endings]
    run = open_file(kind, parts[0], precision)
    frame = np.random.default_rng(0).integers(0, 256, (1, *told["description"]["size"], 3))
    frame = frame.astype(np.uint8)
    facts = {
        "bytes": sum(part.stat().st_size for part in parts),
        "status": told["status"],
        "equal_percent": told["comparison"]["equal_percent"],
    }
    return lambda: run(frame), facts


if __name__ == "__main__":
    _init_paths.run_main(main)
