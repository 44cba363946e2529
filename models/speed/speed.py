"""Time a network on this machine:

    python models/speed/speed.py --a pidnet_s --c 19 --r 1024 2048

Measured is the deployed network (fused, eval mode) on one random image that is already on the
device, in three forms: the logits as the network gives them, with their resize to the image, and
with the argmax after that. All lines are measured alternately in one run. --compare-unfused adds
the network as trained in the same three forms, and "official": the network as trained, float32,
contiguous, eager, which is how published scripts time it (PIDNet's times the logits, DDRNet's the
resized logits, mmsegmentation's the argmax).

Prints the protocol with the numbers and writes both as JSON.
"""

import argparse
import copy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

from _init_paths import run_main  # puts the repository root first on sys.path

from datasets.machine import cpu_count, free_memory
from models import SegModel, build_model, fuse, resolve_name
from models.weights import load_weights, read_checkpoint
from utils.benchmark import alternate, count_macs, count_parameters, peak_memory, time_ratio
from utils.distributed import set_tf32
from utils.errors import InputError
from utils.names import file_stem
from utils.records import environment, require_folder, sha256, write_json

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FORMS = ("logits", "upsample", "argmax")
ROUNDS = 10
MIN_ITERATIONS = 10
SECONDS = 4.0
NOISY = 1.5  # p90 over p10 of a line beyond which times say little


class Deployed(nn.Module):
    """A network and what follows it, up to one of `FORMS`."""

    def __init__(self, model: SegModel, form: str, size: tuple[int, int]) -> None:
        super().__init__()
        self.model, self.form, self.size = model, form, size

    def forward(self, image: Tensor) -> Tensor:
        """Logits at the network's stride or at `size`, or class ids N, H, W."""
        logits = self.model(image)
        if self.form == "logits":
            return logits
        logits = self.model.upsample(logits, self.size)
        return logits if self.form == "upsample" else logits.argmax(1)


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
    add("--a", metavar="NAME", default=default_name, required=default_name is None)
    add("--c", metavar="CLASSES", type=int, default=19, help="default 19")
    add("--r", metavar=("H", "W"), type=int, nargs=2, default=(1024, 2048), help="1024 2048")
    add("--precision", choices=PRECISIONS, default="fp32", help="of weights and image")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--batch", metavar="N", type=int, default=1)
    add("--channels-last", action=switch, default=True)
    add("--compile", action=switch, default=False, help="torch.compile, weights frozen")
    add("--tf32", action=switch, default=None, help="CUDA, convolutions and products; on")
    add("--weights", metavar="FILE", help="checkpoint; fresh weights if not given")
    add("--compare-unfused", action="store_true")
    add("--seconds", type=float, default=SECONDS, help="measured per line, at least")
    add("--threads", metavar="N", type=int, help="CPU threads, at most one for each core")
    add("--out", metavar="FILE", help="default output/speed/<name>_<H>x<W>_<what differs>.json")
    args = parser.parse_args(argv)
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
    return args


def choose_device(args: argparse.Namespace) -> torch.device:
    """The device of `--device`, with `--tf32` and `--threads` applied. Raises ValueError."""
    available = torch.cuda.is_available()
    if args.device == "cuda" and not available:
        raise InputError("--device cuda: PyTorch finds no CUDA device here; use --device cpu")
    device = torch.device("cuda" if available and args.device != "cpu" else "cpu")
    if device.type == "cpu" and args.precision == "fp16":
        raise InputError(
            "--precision fp16 needs CUDA: CPU kernels run it several times slower than fp32; "
            "use --precision bf16"
        )
    if device.type == "cpu" and args.tf32 is not None:
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
    size, free = numbers * PRECISIONS[args.precision].itemsize, free_memory()
    if device.type == "cpu" and size > free:
        raise InputError(
            f"{_what(model, args)} needs more than {size / 1e9:.1f} GB of memory, and "
            f"{free / 1e9:.1f} GB are free; use a smaller --r or --batch"
        )


def record_path(args: argparse.Namespace, name: str, device: torch.device) -> Path:
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
        "contiguous": not args.channels_last,
        "compile": args.compile,
        "no_tf32": args.tf32 is False,
        f"weights-{weights}": bool(weights),
        "unfused": args.compare_unfused,
        f"threads-{torch.get_num_threads()}": bool(args.threads),
        f"seconds-{args.seconds:g}": args.seconds != SECONDS,
    }
    usual = f"{name}_{args.r[0]}x{args.r[1]}_{args.precision}_{device.type}"
    stem = "_".join([usual, *(part for part, differs in parts.items() if differs)])
    require_folder(ROOT / "output/speed", "the folder of records")
    return ROOT / "output/speed" / f"{file_stem(stem, longest=200)}.json"


def _what(model: SegModel, args: argparse.Namespace) -> str:
    return f"{model.architecture} at {args.batch}x3x{args.r[0]}x{args.r[1]}"


def prepare(
    model: SegModel, args: argparse.Namespace, device: torch.device
) -> dict[str, Callable[[], Tensor]]:
    """A function without arguments for each of `FORMS`, in the asked precision and layout."""
    layout = torch.channels_last if args.channels_last else torch.contiguous_format
    dtype, size = PRECISIONS[args.precision], tuple(args.r)
    model = copy.deepcopy(model).to(device, dtype, memory_format=layout)
    image = torch.randn(args.batch, 3, *size, generator=torch.Generator().manual_seed(0))
    image = image.to(device, dtype, memory_format=layout)
    functions = {}
    for form in FORMS:
        network = Deployed(model, form, size).eval()
        if args.compile:
            network = torch.compile(network, options={"freezing": True})
        functions[form] = lambda network=network: network(image)
    return functions


def run(model: SegModel, args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Measure everything that `args` asks for; the numbers of the record."""
    deployed = prepare(fuse(model), args, device)
    deployed["argmax"]()  # what only the first call needs must not count as peak memory
    memory = peak_memory(deployed["argmax"], device)
    functions = dict(deployed)
    if args.compare_unfused:
        for form, function in prepare(model, args, device).items():
            functions[f"unfused {form}"] = function
        plain = argparse.Namespace(**vars(args))
        plain.precision, plain.channels_last, plain.compile = "fp32", False, False
        for form, function in prepare(model, plain, device).items():
            if form != "argmax":
                functions[f"official {form}"] = function
    times = alternate(
        functions,
        ROUNDS,
        device=device,
        warmup_seconds=min(2.0, args.seconds / 2),
        min_seconds=args.seconds,
        min_iterations=MIN_ITERATIONS,
        images=args.batch,
    )
    ratios = {
        f"{form} / {name}": time_ratio(times[form], times[name])
        for name in times
        for form in FORMS
        if name.split()[-1] == form and name != form
    }
    return {"lines": times, "time_ratios": ratios, "peak_memory": memory}


def describe(model: SegModel, args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """The conditions of the measurement."""
    fused = fuse(model)
    return {
        "model": model.architecture,
        "num_classes": model.num_classes,
        "input": [args.batch, 3, *args.r],
        "output_stride": model.output_stride,
        "precision": args.precision,
        "memory_format": "channels_last" if args.channels_last else "contiguous",
        "compiled": args.compile,
        "device": device.type,
        "weights": args.weights and {"file": args.weights, "sha256": sha256(args.weights)},
        "parameters": count_parameters(fused),
        "macs_per_image": count_macs(fused, tuple(args.r)),
        "protocol": {
            "rounds": ROUNDS,
            "seconds_per_line": args.seconds,
            "warmup_seconds_per_line": min(2.0, args.seconds / 2),
            "min_iterations_per_line": MIN_ITERATIONS,
            "timed": "forward pass on a random image already on the device, lines in turn",
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
        },
        "environment": environment(device),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def report(record: dict[str, Any]) -> str:
    """What is printed of a record."""
    facts, protocol = record["environment"], record["protocol"]
    tf32 = ""
    if record["device"] == "cuda":
        tf32 = f", TF32 convolutions {facts['tf32_conv']}, products {facts['tf32_matmul']}"
    batch, _, height, width = record["input"]
    peak = record["peak_memory"]["bytes"]
    lines = [
        f"{record['model']}, {record['num_classes']} classes, input {batch}x3x{height}x{width}, "
        f"{record['precision']}{tf32}, {record['memory_format']}, "
        f"{'compiled' if record['compiled'] else 'eager'}, fused",
        f"on {facts['device']}, {facts['cpu_threads']} CPU threads, torch {facts['torch']}, "
        f"Python {facts['python']}, commit {facts['commit']}",
        f"parameters {record['parameters'] / 1e6:.2f} M, MACs {record['macs_per_image'] / 1e9:.2f} "
        "G per image (convolutions and matrix products, up to the logits)",
        f"peak memory {'unknown' if peak is None else f'{peak / 2**20:.0f} MiB'} "
        f"({record['peak_memory']['what']})",
        f"protocol: {protocol['timed']}; {protocol['rounds']} rounds, at least "
        f"{protocol['seconds_per_line']:g} s and {protocol['min_iterations_per_line']} iterations "
        f"per line after {protocol['warmup_seconds_per_line']:g} s of warm-up",
        "",
        f"{'line':<40}{'median ms':>11}{'p10 ms':>11}{'p90 ms':>11}{'FPS':>9}",
    ]
    for name, times in record["lines"].items():
        numbers = "".join(f"{times[key]:11.2f}" for key in ("median_ms", "p10_ms", "p90_ms"))
        lines.append(f"{_label(name, record):<40}{numbers}{times['fps']:9.2f}")
    if any(name.startswith("official") for name in record["lines"]):
        lines.append(
            "official: as trained, float32, contiguous, eager, as published scripts time it"
        )
    if any(t["p90_ms"] > NOISY * t["p10_ms"] for t in record["lines"].values()):
        lines.append(f"the machine was busy: p90 is above {NOISY} x p10; do not quote these times")
    if record["time_ratios"]:
        lines += [
            "",
            "time ratios: median of the rounds (lowest .. highest), at the 10th percentile",
        ]
    for name, ratio in record["time_ratios"].items():
        spread = f"({ratio['low']:.3f} .. {ratio['high']:.3f})"
        lines.append(f"fused {name:<34}{ratio['median']:7.3f} {spread:<18}{ratio['p10']:7.3f}")
    return "\n".join(lines)


def _label(name: str, record: dict[str, Any]) -> str:
    *whose, form = name.split()
    height, width = record["input"][2:]
    text = {
        "logits": f"logits at 1/{record['output_stride']}",
        "upsample": f"+ upsample to {height}x{width}",
        "argmax": "+ argmax",
    }[form]
    return " ".join([*whose, text])


def main(
    argv: Sequence[str] | None = None, default_name: str | None = None, hyphens: bool = False
) -> int:
    """Entry point; `argv` without the program's name, `hyphens` allowed for underscores in NAME."""
    args = parse(argv, default_name)
    name = resolve_name(args.a.replace("-", "_") if hyphens else args.a)
    device = choose_device(args)
    torch.manual_seed(0)
    checkpoint = read_checkpoint(args.weights) if args.weights else None
    options = {}
    if checkpoint is not None and checkpoint.facts.get("architecture") == name:
        options = checkpoint.facts.get("options", {})
    model = build_model(name, args.c, **options).eval()
    check_images(model, args, device)
    if checkpoint is not None:
        print(load_weights(model, checkpoint, inference=True))
    path = record_path(args, name, device)
    with torch.inference_mode():
        try:
            numbers = run(model, args, device)
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, RuntimeError) and "memory" not in str(error):
                raise
            raise InputError(
                f"{_what(model, args)} does not fit into the device's memory; use a smaller --r or "
                "--batch"
            ) from error
    record = describe(model, args, device) | numbers
    print(report(record))
    write_json(path, record)
    print(f"\nwritten to {path}")
    return 0


if __name__ == "__main__":
    run_main(main)
