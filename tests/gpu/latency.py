"""Latency of every registered network, by the code of models/speed/speed.py."""

import importlib
from typing import Any

import torch
from common import Part

from models import build_model, list_models

FIRST = (
    "rtlinearformer_base",
    "pidnet_s",
    "rtlinearformer_slim",
    "rtformer_base",
    "ddrnet_23_slim",
)
ROUNDS = 3


def run(part: Part) -> None:
    """The networks that matter most first."""
    names = [*FIRST, *(name for name in list_models() if name not in FIRST)]
    for name in names[2:3] if part.tiny else names:
        part.case(name, latency, name, part.device)


def latency(name: str, device: torch.device) -> dict[str, Any]:
    """Milliseconds of logits, with resize, and with argmax, float16 at 1024x2048, batch 1."""
    speed = importlib.import_module("models.speed.speed")
    speed.ROUNDS = ROUNDS
    tiny = device.type == "cpu"
    size, precision, seconds = (64, 128), "fp32", 0.05
    if not tiny:
        size, precision, seconds = (1024, 2048), "fp16", 0.3
    words = ["--a", name, "--r", *map(str, size), "--precision", precision]
    args = speed.parse([*words, "--seconds", str(seconds), "--device", device.type], None)
    where = speed.choose_device(args)
    torch.manual_seed(0)
    model = build_model(name, args.c).eval()
    with torch.inference_mode():
        numbers = speed.run(model, args, where)
        record = speed.describe(model, args, where) | numbers
    times = {form: values["median_ms"] for form, values in record["lines"].items()}
    return {
        "median_ms": times,
        "p90_ms": {form: values["p90_ms"] for form, values in record["lines"].items()},
        "precision": precision,
        "input": record["input"],
        "peak memory": record["peak_memory"],
        "parameters": record["parameters"],
        "macs_per_image": record["macs_per_image"],
    }
