"""Latency of registered networks in every form, by the code of models/speed/speed.py."""

import importlib
from typing import Any

import torch
from common import Part

from models import build_model, list_models

FIRST = (
    "rtlinearformer_base",
    "rtformer_base",
    "pidnet_s",
    "rtlinearformer_slim",
    "rtformer_slim",
    "lrformer_t",
    "rdrnet_s",
    "ddrnet_23_slim",
    "bisenetv2",
    "pidnet_m",
)
ROUNDS = 3


def run(part: Part) -> None:
    """The networks that matter most first; those beside which they are compared next to them."""
    names = [*FIRST, *(name for name in list_models() if name not in FIRST)]
    for name in names[3:4] if part.tiny else names:
        forms = ["published", "eager", "graph"] if not part.tiny else ["published", "eager"]
        part.case(name, latency, name, forms, part.device)
    for name in () if part.tiny else FIRST[:3]:
        part.case(f"{name} compiled", latency, name, ["compiled"], part.device)


def latency(name: str, forms: list[str], device: torch.device) -> dict[str, Any]:
    """Milliseconds of logits, class map and whole frame at 1024x2048, batch 1, fp32 and fp16."""
    speed = importlib.import_module("models.speed.speed")
    speed.ROUNDS = ROUNDS
    tiny = device.type == "cpu"
    size, precisions, seconds = ("64", "128"), ["fp32"], "0.05"
    if not tiny:
        size, precisions, seconds = ("1024", "2048"), ["fp32", "fp16"], "0.15"
    words = ["--a", name, "--r", *size, "--precision", *precisions, "--form", *forms]
    words += ["--lines", "logits", "classes", "frame", "--seconds", seconds]
    args = speed.parse([*words, "--device", device.type], None)
    where = speed.choose_device(args)
    torch.manual_seed(0)
    models = {name: build_model(name, args.c).eval()}
    with torch.inference_mode():
        record = speed.describe(models, args, where) | speed.run(models, args, where)
    lines = {key.removeprefix(f"{name} "): values for key, values in record["lines"].items()}
    return {
        "median_ms": {key: values["median_ms"] for key, values in lines.items()},
        "p90_ms": {key: values["p90_ms"] for key, values in lines.items()},
        **record["networks"][name],
        "input": record["input"],
        "deployments": record["deployments"],
        "peak memory": record["peak_memory"],
    }
