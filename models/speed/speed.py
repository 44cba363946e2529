"""Time networks on this machine, in the forms in which they can run, in one table:

    python models/speed/speed.py --a pidnet_s --c 19 --r 1024 2048
    python models/speed/speed.py --a pidnet_s --a rtlinearformer_slim --r 480 640 --form compiled

Forms: "published" (as trained, contiguous, eager: how published scripts time a network) and those
of utils/deploy.py: "eager", "graph" (CUDA), "compiled", "onnxruntime", "openvino". Lines: the
logits; with their resize to the image; with the argmax after that; and the whole way of a frame,
from 8-bit pixels in the computer's memory to 8-bit class ids there. All are measured in turn.

    python models/speed/speed.py --a pidnet_s --estimate rtx4090 orin64

measures nothing, but tells the least possible and the expected time on cards that are not at hand.
"""

import argparse
import copy
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

from _init_paths import run_main  # puts the repository root first on sys.path

from datasets.machine import cpu_count, free_memory
from models import SegModel, build_model, fuse, resolve_name
from models.speed.timed_lines import prepare, say, wanted_forms
from models.speed.timing_report import ENDS, estimate_table, label, report
from models.weights import load_weights, read_checkpoint
from utils.benchmark import (
    alternate,
    count_macs,
    count_parameters,
    peak_memory,
    peak_work,
    time_ratio,
)
from utils.deploy import DTYPES, RUNTIMES
from utils.distributed import set_tf32
from utils.errors import InputError
from utils.failures import NO_MEMORY
from utils.names import file_stem
from utils.records import environment, require_folder, sha256, write_json
from utils.roofline import CARDS, PRECISIONS, floor_ms, get_card, this_card, trace

FORMS = ("published", *RUNTIMES)
ROUNDS = 10
MIN_ITERATIONS = 10
SECONDS = 4.0


class Parser(argparse.ArgumentParser):
    """Reports a bad command line as one sentence."""

    def error(self, message: str) -> NoReturn:
        """Raise ValueError(message)."""
        raise InputError(message)


def parse(argv: Sequence[str] | None, default_name: str | None) -> argparse.Namespace:
    """The command line, checked. Raises ValueError."""
    parser = Parser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    switch = argparse.BooleanOptionalAction
    add = parser.add_argument
    need = default_name is None
    add("--a", metavar="NAME", action="append", required=need, help="may be repeated")
    add("--c", metavar="CLASSES", type=int, default=19, help="default 19")
    add("--r", metavar=("H", "W"), type=int, nargs=2, default=(1024, 2048), help="1024 2048")
    add("--form", choices=FORMS, nargs="+", help="eager, on CUDA eager and graph")
    add("--precision", choices=DTYPES, nargs="+", default=["fp32"], help="of weights and image")
    add("--lines", choices=ENDS, nargs="+", default=list(ENDS), help="all")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--batch", metavar="N", type=int, default=1)
    add("--tf32", action=switch, default=None, help="CUDA, convolutions and products; on")
    add("--weights", metavar="FILE", help="checkpoint of the one network; fresh if not given")
    add("--estimate", choices=(*CARDS, "all"), nargs="+", help="measure nothing; cards")
    add("--seconds", type=float, default=SECONDS, help="measured per line, at least")
    add("--threads", metavar="N", type=int, help="CPU threads, at most one for each core")
    add("--out", metavar="FILE", help="default output/speed/<name>_<H>x<W>_<what differs>.json")
    args = parser.parse_args(argv)
    args.a = args.a or [default_name]
    for option in ("batch", "threads", "c"):
        value = getattr(args, option)
        if value is not None and not 1 <= value < 2**31:
            raise InputError(f"--{option} is {value}; it must be at least 1 and below 2**31")
    if not 1 <= min(args.r) <= max(args.r) < 2**31:
        raise InputError(
            f"--r is {args.r[0]} {args.r[1]}; height and width must be positive and below 2**31"
        )
    if not 0 < args.seconds < float("inf"):
        raise InputError(f"--seconds is {args.seconds}; it must be positive")
    if args.weights and len(args.a) > 1:
        raise InputError(f"--weights {args.weights} is for one network; --a names {len(args.a)}")
    return args


def choose_device(args: argparse.Namespace) -> torch.device:
    """The device of `--device`, with `--tf32` and `--threads` applied. Raises ValueError."""
    available = torch.cuda.is_available()
    if args.device == "cuda" and not available:
        raise InputError("--device cuda: PyTorch finds no CUDA device here; use --device cpu")
    device = torch.device("cuda" if available and args.device != "cpu" else "cpu")
    if device.type == "cpu" and "fp16" in args.precision and not args.estimate:
        raise InputError(
            "--precision fp16 needs CUDA: CPU kernels run it several times slower than fp32; "
            "use --precision bf16"
        )
    if device.type == "cpu" and args.tf32 is not None and not args.estimate:
        raise InputError("--tf32 and --no-tf32 need CUDA; the CPU has no TF32")
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        set_tf32(args.tf32 is not False)  # as training and evaluation do
    if args.threads:
        cores = cpu_count()
        if args.threads > cores:
            print(f"--threads {args.threads}: limited to {cores}, the CPU cores at hand")
        torch.set_num_threads(min(args.threads, cores))
    return device


def check_images(model: SegModel, args: argparse.Namespace, device: torch.device) -> None:
    """Raise ValueError where images of `args` cannot be measured; nothing is computed."""
    model.check_size(*args.r)
    try:
        shadow = copy.deepcopy(model).to("meta")
        shadow(torch.empty(args.batch, 3, *args.r, device="meta"))
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{_what(model, args)} cannot be run: {reason}") from None
    numbers = args.batch * args.r[0] * args.r[1] * (3 + args.c)  # images and their logits at least
    size, free = numbers * max(DTYPES[p].itemsize for p in args.precision), free_memory()
    if device.type == "cpu" and size > free and not args.estimate:
        raise InputError(
            f"{_what(model, args)} needs more than {size / 1e9:.1f} GB of memory, and "
            f"{free / 1e9:.1f} GB are free; use a smaller --r or --batch"
        )


def record_path(args: argparse.Namespace, names: list[str], device: torch.device) -> Path:
    """The file of the record: --out, or a name with everything that differs from the defaults.

    Raises ValueError where no such file can be written.
    """
    if args.out:
        path = Path(args.out)
        if path.is_dir():
            raise InputError(f"--out {path} is a folder; name a file in it")
        require_folder(path.parent, "the folder of --out")
        return path
    weights = args.weights and f"{Path(args.weights).stem[:40]}-{sha256(args.weights)[:8]}"
    parts = {
        f"c-{args.c}": args.c != 19,
        f"batch-{args.batch}": args.batch != 1,
        "-".join(args.form or ()): bool(args.form),
        "-".join(args.lines): len(args.lines) < len(ENDS),
        "no_tf32": args.tf32 is False,
        f"weights-{weights}": bool(weights),
        f"threads-{torch.get_num_threads()}": bool(args.threads),
        f"seconds-{args.seconds:g}": args.seconds != SECONDS,
    }
    usual = f"{'+'.join(names)}_{args.r[0]}x{args.r[1]}_{'-'.join(args.precision)}_{device.type}"
    stem = "_".join([usual, *(part for part, differs in parts.items() if differs)])
    require_folder(ROOT / "output/speed", "the folder of records")
    return ROOT / "output/speed" / f"{file_stem(stem, longest=200)}.json"


def _what(model: SegModel, args: argparse.Namespace) -> str:
    return f"{model.architecture} at {args.batch}x3x{args.r[0]}x{args.r[1]}"


def run(
    models: dict[str, SegModel], args: argparse.Namespace, device: torch.device
) -> dict[str, Any]:
    """Measure everything that `args` asks for; the numbers of the record."""
    functions, told = prepare(models, args, device)
    if not functions:
        none = f"--form published has no line {', '.join(args.lines)}"
        raise InputError(next(iter(told.values()), none).removeprefix("left out: "))
    first = next(iter(functions.values()))
    first()  # what only the first call needs must not count as peak memory
    memory = peak_memory(first, device)
    works = {
        (precision, kind): work
        for precision in args.precision
        for kind, work in peak_work(device, DTYPES[precision]).items()
    }
    everything = functions | {f"peak {p} {kind}": f for (p, kind), (f, _) in works.items()}
    say(f"measuring {len(everything)} lines, about {1.5 * args.seconds * len(everything):.0f} s")
    times = alternate(
        everything,
        ROUNDS,
        device=device,
        warmup_seconds=min(2.0, args.seconds / 2),
        min_seconds=args.seconds,
        min_iterations=MIN_ITERATIONS,
        images=args.batch,
        show=True,
    )
    peak = {}
    for (precision, kind), (_, operations) in works.items():
        rate = operations / (times.pop(f"peak {precision} {kind}")["p10_ms"] / 1e3)
        if rate > peak.get(precision, {}).get("operations_per_second", 0):
            peak[precision] = {"operations_per_second": rate, "of": kind}
    return {
        "lines": times,
        "time_ratios": ratios(times),
        "peak_memory": memory,
        "peak": peak,
        "deployments": told,
    }


def ratios(times: dict[str, Any]) -> dict[str, Any]:
    """Time of every line over that of the published form of the same network and end."""
    found = {}
    for key in times:
        name, form, _, end = key.split()
        reference = label(name, "published", "fp32", end)
        if form != "published" and reference in times:
            found[f"{key} / {reference}"] = time_ratio(times[key], times[reference])
    return found


def describe(
    models: dict[str, SegModel], args: argparse.Namespace, device: torch.device
) -> dict[str, Any]:
    """The conditions of the measurement."""
    weights = args.weights and {"file": args.weights, "sha256": sha256(args.weights)}
    return {
        "networks": {name: facts_of(model, args, device) for name, model in models.items()},
        "num_classes": args.c,
        "input": [args.batch, 3, *args.r],
        "device": device.type,
        "weights": weights,
        "protocol": {
            "rounds": ROUNDS,
            "seconds_per_line": args.seconds,
            "warmup_seconds_per_line": min(2.0, args.seconds / 2),
            "min_iterations_per_line": MIN_ITERATIONS,
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
        },
        "environment": environment(device),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def facts_of(model: SegModel, args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """What is known of a network without running it; its floors where the card is a known one."""
    fused, floors = fuse(model), {}
    if card := this_card(device):
        for precision in args.precision:
            kind = "tf32" if precision == "fp32" and args.tf32 is not False else precision
            layers = trace(fused, tuple(args.r), args.batch, PRECISIONS[kind])
            floors[precision] = floor_ms(layers, card, kind)
    return {
        "parameters": count_parameters(fused),
        "macs_per_image": count_macs(fused, tuple(args.r)),
        "stride": model.output_stride,
        "floor_ms": floors,
    }


def build(args: argparse.Namespace, names: list[str]) -> dict[str, SegModel]:
    """The networks by name, with the weights of --weights. Raises ValueError."""
    torch.manual_seed(0)
    checkpoint = read_checkpoint(args.weights) if args.weights else None
    models = {}
    for name in names:
        options = {}
        if checkpoint is not None and checkpoint.facts.get("architecture") == name:
            options = checkpoint.facts.get("options", {})
        models[name] = build_model(name, args.c, **options).eval()
        if checkpoint is not None:
            print(load_weights(models[name], checkpoint, inference=True))
    return models


def estimate(models: dict[str, SegModel], args: argparse.Namespace) -> str:
    """Times on the cards of --estimate."""
    cards = list(CARDS) if "all" in args.estimate else [get_card(c).name for c in args.estimate]
    kinds = ["tf32" if p == "fp32" and args.tf32 is not False else p for p in args.precision]
    fused = {name: fuse(model) for name, model in models.items()}
    lines = estimate_table(fused, tuple(args.r), args.batch, cards, kinds)
    return "\n".join(
        [
            *lines,
            "",
            "milliseconds up to the logits: the least possible, and an estimate of a CUDA graph by "
            "PyTorch; graphs",
            "measured on one card took 1.9 to 3.4 times the estimate. From published rates: see "
            "utils/roofline.py",
        ]
    )


def main(
    argv: Sequence[str] | None = None, default_name: str | None = None, hyphens: bool = False
) -> int:
    """Entry point; `argv` without the program's name, `hyphens` allowed for underscores in NAME."""
    args = parse(argv, default_name)
    names = [resolve_name(name.replace("-", "_") if hyphens else name) for name in args.a]
    names = list(dict.fromkeys(names))
    device = choose_device(args)
    models = build(args, names)
    for model in models.values():
        check_images(model, args, device)
    if args.estimate:
        print(estimate(models, args))
        return 0
    wanted_forms(args, device)
    path = record_path(args, names, device)
    with torch.inference_mode():
        try:
            numbers = run(models, args, device)
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, RuntimeError) and not re.search(NO_MEMORY, str(error)):
                raise
            what = " or ".join(_what(model, args) for model in models.values())
            raise InputError(
                f"{what} does not fit into the device's memory; use a smaller --r or --batch"
            ) from error
    record = describe(models, args, device) | numbers
    print(report(record))
    write_json(path, record)
    print(f"\nwritten to {path}")
    return 0


if __name__ == "__main__":
    run_main(main)
