"""Compare shapes of RTLinearFormer with RTFormer; write docs/rtlinearformer.md.

    python tools/pages/shapes.py --measure [--rounds 7]
    python tools/pages/shapes.py --trained SHAPE RUN_FOLDER [RUN_FOLDER ...]
    python tools/pages/shapes.py --page

The first command counts all shapes, predicts their time on a card (pages/kernel_model.py) and
measures them on this CPU: all in turn in one process, in CPU time of the process with two threads
that do not spin, so that other programs disturb it little; other CPUs' times stay. The second adds
the scores of training runs. Both change docs/records/shapes.json; the third writes the page.
"""

import argparse
import json
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

os.environ["OMP_WAIT_POLICY"] = "passive"  # read when torch is imported
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import _init_paths
import numpy as np
import torch
import yaml
from pages.kernel_model import predict
from pages.shapes_page import write_page

from models import build_model, fuse
from models.weights.rtlinearformer import EARLIER
from utils.benchmark import count_macs, count_parameters
from utils.errors import InputError
from utils.records import environment, write_json

RECORD = _init_paths.ROOT / "docs/records/shapes.json"
PAGE = _init_paths.ROOT / "docs/rtlinearformer.md"
SIZE, CPU_SIZE, CLASSES = (1024, 2048), (512, 1024), 19
WIDTHS = ("base", "slim")
PRECISIONS = {"tf32": torch.float32, "fp16": torch.float16}
CPU_DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}

# The earlier shape, then one change after the other; then what the last is compared with.
_BEHIND = EARLIER | {"context_norm": "behind"}
_RELU = _BEHIND | {"residual_relu": True}
_ADD = _RELU | {"fusion": "add"}
_CONV = _ADD | {"feed_forward": ("conv", "inverted"), "expansion": (0.5, 2.0)}
_SCALE = _CONV | {"scales": (3,)}
_LEAN = _SCALE | {"low_to_high": (True, False)}
SHAPES: dict[str, dict[str, Any]] = {
    "earlier": EARLIER,
    "context norms behind": _BEHIND,
    "ReLU behind every sum": _RELU,
    "branches added": _ADD,
    "3x3 feed-forward, high": _CONV,
    "one further scale": _SCALE,
    "one exchange": _LEAN,
    "no exchange": _LEAN | {"low_to_high": (False, False)},
    "two further scales, half the channels": _LEAN | {"scales": (3, 5), "attention_channels": 0.5},
    "scale 5 for 3": _LEAN | {"scales": (5,)},
    "3x3 of three quarters": _LEAN | {"expansion": (0.75, 2.0)},
    "3x3 in both branches": _LEAN | {"feed_forward": "conv", "expansion": 0.5},
    "branches side by side": _LEAN | {"fusion": "cat"},
    "logits at 1/4": _LEAN | {"detail_channels": 0.5},
}
CHOSEN = "one exchange"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--measure", action="store_true", help="count, predict and measure")
    parser.add_argument("--rounds", type=int, default=7, help="calls of every network")
    parser.add_argument("--trained", nargs="+", metavar="NAME", help="shape and run folders")
    parser.add_argument("--page", action="store_true", help="write the page")
    parser.add_argument("--check", action="store_true", help="exit 1 if the page is not up to date")
    args = parser.parse_args()
    record = json.loads(RECORD.read_text("utf-8")) if RECORD.exists() else {}
    if args.measure:
        record |= {"size": SIZE, "cpu_size": CPU_SIZE}
        record["networks"], speeds = measure(args.rounds)
        facts = environment()
        command = shlex.join(["python", "tools/pages/shapes.py", *sys.argv[1:]])
        found = {"command": command, "environment": facts, "networks": speeds}
        record.setdefault("cpus", {})[facts["device"]] = found
    if args.trained:
        name, *folders = args.trained
        if name not in SHAPES:
            raise InputError(f"there is no shape {name!r}; there are {', '.join(SHAPES)}")
        runs = [read_run(Path(folder)) for folder in folders]
        record.setdefault("trained", {}).setdefault(name, []).extend(runs)
    if args.measure or args.trained:
        write_json(RECORD, record)
        print(f"wrote {RECORD}")
    if args.page or args.check:
        return write_page(PAGE, record, CHOSEN, args.check)
    return 0


def build(name: str, width: str) -> torch.nn.Module:
    """The fused network of a shape, or RTFormer; some options are shares of the usual width."""
    if name == "rtformer":
        return fuse(build_model(f"rtformer_{width}", CLASSES))
    options = dict(SHAPES[name])
    full = {"base": 128, "slim": 64}[width]
    for key in {"attention_channels", "detail_channels"} & options.keys():
        options[key] = round(full * options[key])
    return fuse(build_model(f"rtlinearformer_{width}", CLASSES, **options))


def measure(rounds: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Counts and predictions of all shapes, and their times on this CPU."""
    counts: dict[str, Any] = {}
    times: dict[str, Any] = {}
    torch.set_num_threads(2)
    for width in WIDTHS:
        models = {name: build(name, width) for name in ("rtformer", *SHAPES)}
        counts[width] = {name: count(model) for name, model in models.items()}
        times[width] = {k: cpu_times(models, dtype, rounds) for k, dtype in CPU_DTYPES.items()}
    return counts, times


def count(model: torch.nn.Module) -> dict[str, Any]:
    """Parameters, multiply-adds, and what a card is predicted to take."""
    row: dict[str, Any] = {"parameters": count_parameters(model), "macs": count_macs(model, SIZE)}
    for joined in (False, True):
        for name, dtype in PRECISIONS.items():
            found = predict(model, dtype, joined=joined, size=SIZE)
            row[f"{name}, joined" if joined else name] = vars(found)
    return row


def cpu_times(
    models: dict[str, torch.nn.Module], dtype: torch.dtype, rounds: int
) -> dict[str, dict[str, Any]]:
    """CPU milliseconds of every network, and RTFormer's over them (ratios of the rounds)."""
    layout = {"memory_format": torch.channels_last}
    image = torch.randn(1, 3, *CPU_SIZE, dtype=dtype).contiguous(**layout)
    ready = {name: model.to(dtype).to(**layout) for name, model in models.items()}
    times: dict[str, list[float]] = {name: [] for name in models}
    with torch.inference_mode():
        for turn in range(rounds + 1):
            for name, model in ready.items():
                began = time.process_time()
                model(image)
                if turn:  # the first call prepares
                    times[name].append(1e3 * (time.process_time() - began))
    for model in models.values():
        model.float()
    result = {}
    for name, each in times.items():
        ratios = np.divide(times["rtformer"], each)
        speed = {"median": np.median(ratios), "low": ratios.min(), "high": ratios.max()}
        result[name] = {
            "median_ms": float(np.median(each)),
            "speed": {key: float(value) for key, value in speed.items()},
        }
    return result


def read_run(folder: Path) -> dict[str, Any]:
    """The score of a run's last epoch, and what it was trained on."""
    config = yaml.safe_load((folder / "config.yaml").read_text("utf-8"))
    lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    last = json.loads(lines[-1])
    return {
        "config": folder.name,
        "seed": config["SEED"],
        "epochs": last["epoch"],
        "lr": config["TRAIN"]["LR"],
        "miou": last["miou"],
        "options": config["MODEL"].get("OPTIONS", {}),
    }


if __name__ == "__main__":
    _init_paths.run_main(main)
