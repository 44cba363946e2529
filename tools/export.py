"""Write a network as files for other runtimes, and check each against the network itself.

    python tools/export.py best.pt --format onnx openvino --r 360 480 --out exported

A file takes a camera's frame (1, H, W, 3, uint8, RGB) and gives a class map (1, H, W, uint8);
`--output logits` leaves normalisation and class map out. Each is run in its own runtime beside the
network in float32, on the pictures of --check or on drawn ones; what differs too much keeps the
ending .failed. docs/export.md has the limits, 8 bits (--calibrate), and TensorRT.

Exit status 0: all files are as good as their limits ask, or said to be unverified; 1: one failed;
2: nothing was written.
"""

import argparse
import json
from pathlib import Path
from typing import Any, NoReturn

import _init_paths  # noqa: F401
import torch
from _init_paths import run_main
from export_scenes import Drawn, Pictures, find_pictures
from exporting import Job, export_all

from datasets import DatasetMeta, EvalTransform, get_meta, list_datasets
from datasets.camvid import SYNTHETIC
from datasets.private import distinct_colors
from models import build_model, resolve_name
from models.weights import load_trained
from utils import runtimes
from utils.errors import InputError
from utils.export import (
    FORMATS,
    LEAST,
    MOST,
    MOST_CLASSES,
    MULTIPLE,
    OUTPUTS,
    PRECISIONS,
    Description,
    dynamic_sides,
)
from utils.gate import FAILED
from utils.records import require_folder, sha256
from utils.stopping import Interruption


def main() -> int:
    interrupted = Interruption()
    args = parse_args()
    check_formats(args)
    job = load(args)
    check_names(args.out, job.description, args.format)
    pictures, calibration = choose_pictures(args, job)
    require_folder(args.out, "--out")
    print(f"{job.description.name}: to be checked on {pictures.named}", flush=True)
    verdicts = export_all(job, args.format, pictures, calibration, args.out, interrupted)
    return int(any(verdict.status == FAILED for verdict in verdicts.values()))


def check_formats(args: argparse.Namespace) -> None:
    """Raise ValueError for what cannot be made here, before anything is read."""
    for kind in args.format:
        accepted = FORMATS[kind].precisions
        if args.precision not in accepted:
            raise InputError(
                f"--precision {args.precision} is none of format {kind}; accepted: "
                f"{', '.join(accepted)}"
            )
        if FORMATS[kind].package:
            runtimes.require(FORMATS[kind].package)
        if kind == "openvino" and args.precision == "int8":
            runtimes.require("nncf")
        if kind == "aoti" and not runtimes.can_compile(torch.device("cpu")):
            raise InputError("--format aoti needs a C++ compiler; there is none in PATH")
    if (args.precision == "int8") != (args.calibrate is not None):
        raise InputError("--precision int8 and --calibrate LIST-or-FOLDER belong together")
    if args.weights is None and (args.arch is None or (args.c is None) == (args.classes is None)):
        raise InputError(
            "without WEIGHTS a network is named by --arch NAME and either --c CLASSES or "
            "--classes DATASET; its weights are then random"
        )
    if args.weights is not None and args.c is not None:
        raise InputError("--c is for random weights; the classes of WEIGHTS are named by --classes")
    if args.dynamic and (min(args.r) < LEAST or any(side % MULTIPLE for side in args.r)):
        raise InputError(
            f"--r is {args.r[0]} {args.r[1]}; with --dynamic height and width are multiples of "
            f"{MULTIPLE} from {LEAST} on"
        )


def load(args: argparse.Namespace) -> Job:
    """The network of the command line. Raises ValueError where it cannot be as asked for."""
    meta = get_meta(args.classes) if args.classes else None
    named: dict[str, Any] = {}
    if meta is not None:
        named = {
            "class_names": meta.class_names, "palette": meta.palette, "dataset": meta.name
        }  # fmt: skip
    if args.weights is None:
        torch.manual_seed(0)
        count = args.c if meta is None else meta.num_classes
        model = build_model(resolve_name(args.arch), count).eval()
        names = tuple(f"class {index}" for index in range(count))
        facts = {"class_names": names, "palette": distinct_colors(count), "dataset": ""} | named
        transform, weights = EvalTransform(), {}
    else:
        trained = load_trained(args.weights, args.arch, **named)
        model = trained.model
        facts = {key: getattr(trained, key) for key in ("class_names", "palette", "dataset")}
        transform = EvalTransform.from_facts(trained.input, str(args.weights))
        weights = {"file": args.weights.name, "sha256": sha256(args.weights)}
        print(f"{args.weights}: {trained.report}")
    model.check_size(*args.r)
    if args.output == "classes" and len(facts["class_names"]) > MOST_CLASSES:
        raise InputError(
            f"{len(facts['class_names'])} classes; a class map of 8 bits holds {MOST_CLASSES}; use "
            "--output logits"
        )
    description = Description(
        architecture=model.architecture,
        **facts,
        mean=transform.normalize.mean,
        std=transform.normalize.std,
        size=tuple(args.r),
        precision=args.precision,
        output=args.output,
        stride=model.output_stride,
        dynamic=dynamic_sides(args.r) if args.dynamic else {},
        weights=weights,
        scaling=scaling_of(transform),
    )
    if description.scaling and transform.target_size(args.r) != args.r:
        told = ", ".join(f"{key} {value}" for key, value in description.scaling.items())
        print(f"note: {args.weights} brings its pictures to {told}; --r is {args.r[0]} {args.r[1]}")
    if meta is None:
        meta = known_meta(description)
    return Job(model, description, transform.normalize, meta, bool(weights))


def scaling_of(transform: EvalTransform) -> dict[str, int]:
    """What a checkpoint asks of the size of its pictures."""
    facts = transform.facts()
    asked = {key: facts[key] for key in ("short_side", "long_side") if facts[key]}
    return asked | ({"size_divisor": transform.divisor} if transform.divisor > 1 else {})


def known_meta(description: Description) -> DatasetMeta | None:
    """The built-in dataset that has these classes, if the file names one."""
    if description.dataset not in list_datasets():
        return None
    meta = get_meta(description.dataset)
    return meta if meta.class_names == description.class_names else None


def check_names(out: Path, description: Description, kinds: list[str]) -> None:
    """Raise ValueError where what would be written is there already: it may be in use, or
    somebody's own."""
    for kind in kinds:
        for ending in FORMATS[kind].endings:
            path = out / f"{description.name}{ending}"
            if path.exists():
                raise InputError(f"{path} exists; name another --out or remove it")
    told = out / f"{description.name}.json"
    if told.exists() and not tells_the_same(told, description):
        raise InputError(f"{told} is of another network; name another --out or remove it")
    ours = any(out.glob("*.gate.json"))
    if foreign := [name for name in ("README.md", "run.py") if not ours and (out / name).exists()]:
        raise InputError(f"{out / foreign[0]} is not of an export; name another --out")


def tells_the_same(path: Path, description: Description) -> bool:
    """Whether a description on disk is this one."""
    try:
        return json.loads(path.read_text(encoding="utf-8")) == json.loads(description.text())
    except (OSError, ValueError):
        return False


def choose_pictures(args: argparse.Namespace, job: Job) -> tuple[Pictures, Pictures | None]:
    """What to check on, and what to calibrate on. Raises ValueError where they are not there."""
    lists = [path for path in (args.check, args.calibrate) if path is not None]
    if args.labels and not any(args.root.joinpath(path).is_file() for path in lists):
        raise InputError(f"--labels {args.labels} is for list files of --check and --calibrate")
    if args.check is not None and args.check == args.calibrate:
        raise InputError(
            f"--check and --calibrate are both {args.check}; check on pictures that the ranges of "
            "8 bits were not seen on"
        )
    # CamVid has the same classes, but not these streets.
    drawn = Drawn(labelled=job.description.dataset == SYNTHETIC.name)
    found = [
        find_pictures(path, option, args.root, job.meta, args.labels) if path else None
        for option, path in (("--check", args.check), ("--calibrate", args.calibrate))
    ]
    return found[0] or drawn, found[1]


def parse_args() -> argparse.Namespace:
    """The command line. Raises ValueError."""
    parser = Parser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("weights", nargs="?", type=Path, help="checkpoint; without one the weights are random")
    add("--format", choices=FORMATS, nargs="+", required=True)
    add("--out", metavar="FOLDER", type=Path, required=True)
    add("--r", metavar=("H", "W"), type=int, nargs=2, required=True, help="size of the input")
    add("--precision", choices=PRECISIONS, default="fp32", help="default fp32")
    add("--output", choices=OUTPUTS, default="classes", help="default classes")
    add("--dynamic", action="store_true", help=f"any multiple of {MULTIPLE} from {LEAST} on")
    add("--arch", "--a", metavar="NAME", help="architecture, where WEIGHTS does not say it")
    add("--classes", metavar="DATASET", help="or a .yaml file, where WEIGHTS does not say it")
    add("--c", metavar="CLASSES", type=int, help="of random weights")
    add("--check", metavar="PATH", type=Path, help="list file or folder of pictures")
    add("--calibrate", metavar="PATH", type=Path, help="the same, for int8: as in training")
    add("--root", metavar="FOLDER", type=Path, default=Path("data"), help="of lists; default data")
    add("--labels", metavar="ENCODING", default="", help="of lists, as DATASET.LABELS")
    args = parser.parse_args()
    if not 1 <= min(args.r) <= max(args.r) <= MOST:
        raise InputError(f"--r is {args.r[0]} {args.r[1]}; accepted: 1 to {MOST} pixels")
    args.r, args.format = tuple(args.r), list(dict.fromkeys(args.format))
    return args


class Parser(argparse.ArgumentParser):
    """Reports a bad command line as one sentence."""

    def error(self, message: str) -> NoReturn:
        """Raise ValueError(message)."""
        raise InputError(message)


if __name__ == "__main__":
    run_main(main)
