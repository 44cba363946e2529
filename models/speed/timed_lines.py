"""The functions that the speed script times: one for each network, form, precision and line."""

import argparse
import copy
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from datasets.transforms import IMAGENET_MEAN, IMAGENET_STD
from models import SegModel, fuse
from models.speed.timing_report import label
from utils.deploy import DTYPES, Prepared, choose_runtime, prepare_for_inference
from utils.errors import InputError


def wanted_forms(args: argparse.Namespace, device: torch.device) -> list[tuple[str, str]]:
    """(form, precision) of every row; what a form cannot do is left out, the published form is
    float32 where that is among the precisions. Raises ValueError where a form cannot run at all."""
    forms = args.form or (["eager", "graph"] if device.type == "cuda" else ["eager"])
    precisions, rows = list(dict.fromkeys(args.precision)), []
    for form in dict.fromkeys(forms):
        if form == "published":
            rows += [(form, p) for p in precisions if p == "fp32"] or [(form, precisions[0])]
            continue
        possible, reason = [], None
        for precision in precisions:
            try:
                choose_runtime(form, device, precision, announced=True)
                possible.append((form, precision))
            except InputError as error:
                reason = error
        if not possible:
            raise reason
        rows += possible
    return rows


def published_lines(
    model: SegModel, args: argparse.Namespace, precision: str, device: torch.device
) -> dict[str, Callable[[], Tensor]]:
    """The network as trained: no folding, no layout of its own, operation by operation."""
    size, dtype = tuple(args.r), DTYPES[precision]
    model = copy.deepcopy(model).to(device, dtype)
    image = random_image(args).to(device, dtype)
    return {
        "logits": lambda: model(image),
        "resized": lambda: model.upsample(model(image), size),
        "classes": lambda: model.upsample(model(image), size).argmax(1),
    }


def deployed_lines(
    prepared: dict[str, Prepared], args: argparse.Namespace, precision: str, device: torch.device
) -> dict[str, Callable[[], Tensor]]:
    """A function without arguments for each line that `prepared`, by its output, can give."""
    image = random_image(args).to(device, DTYPES[precision], memory_format=torch.channels_last)
    lines = {end: (lambda run=run: run(image)) for end, run in prepared.items() if end != "frame"}
    if "frame" in prepared:
        run, mean = prepared["frame"], torch.tensor(IMAGENET_MEAN, device=device) * 255
        scale = 1 / (torch.tensor(IMAGENET_STD, device=device) * 255)
        pixels = torch.randint(0, 256, (args.batch, *args.r, 3), dtype=torch.uint8)
        pixels = pixels.pin_memory() if device.type == "cuda" else pixels

        def frame() -> Tensor:
            there = pixels.to(device, non_blocking=True)
            return run(((there - mean) * scale).permute(0, 3, 1, 2)).cpu()

        lines["frame"] = frame
    return lines


def random_image(args: argparse.Namespace) -> Tensor:
    """Images as normalised ones are; the same in every run."""
    return torch.randn(args.batch, 3, *args.r, generator=torch.Generator().manual_seed(0))


def prepare(
    models: dict[str, SegModel], args: argparse.Namespace, device: torch.device
) -> tuple[dict[str, Callable[[], Tensor]], dict[str, str]]:
    """The functions to measure, by line, and what was chosen for them, by row."""
    functions, told = {}, {}
    rows = wanted_forms(args, device)
    steps = len(models) * len(rows)
    for index, (name, model) in enumerate(models.items()):
        fused = fuse(model)
        for number, (form, precision) in enumerate(rows, index * len(rows) + 1):
            say(f"preparing {name}, {form}, {precision} ({number} of {steps})")
            if form == "published":
                lines = published_lines(model, args, precision, device)
                lines = {end: lines[end] for end in lines if end in args.lines}
            else:
                try:
                    prepared, told[f"{name} {form} {precision}"] = prepare_outputs(
                        fused, args, form, precision, device
                    )
                except InputError as error:  # of this network alone
                    told[f"{name} {form} {precision}"] = f"left out: {error}"
                    say(f"left out: {error}")
                    continue
                lines = deployed_lines(prepared, args, precision, device)
            functions |= {label(name, form, precision, end): f for end, f in lines.items()}
    return functions, told


def prepare_outputs(
    fused: SegModel,
    args: argparse.Namespace,
    form: str,
    precision: str,
    device: torch.device,
) -> tuple[dict[str, Prepared], str]:
    """The network once for every output that `args` asks for, and how it runs."""
    prepared: dict[str, Prepared] = {}
    for end in args.lines:
        output = "classes" if end == "frame" else end
        if prepared:
            run = next(iter(prepared.values())).giving(output)
            run.prepare((args.batch, 3, *args.r))
        else:
            run, deployment = prepare_for_inference(
                fused,
                device=device,
                precision=precision,
                size=tuple(args.r),
                batch=args.batch,
                output=output,
                runtime=form,
            )
        prepared[end] = run
    return prepared, str(deployment)


def say(text: str) -> None:
    """Progress, beside the table on stdout."""
    print(text, file=sys.stderr, flush=True)
