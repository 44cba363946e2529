"""A captured step does what an eager one does, also after a bad batch, a resume or a failure."""

import io
from typing import Any

import torch
from common import (
    Part,
    Training,
    dataset_of,
    device_loader,
    distance,
    endless,
    require_cuda,
    settings,
)
from torch import nn

from utils.capture import EAGER_STEPS
from utils.distributed import World
from utils.run_state import random_state
from utils.step import Step

STEPS = 20
# Kernels add in an order that changes from run to run, and steps amplify it. So what is allowed
# between captured and eager is what lies between two eager runs, times this, and at least:
SPREAD, FLOOR = 10.0, 1e-6
CASES = {  # name -> network and settings
    "adamw": ("rtlinearformer_base", "TRAIN.WARMUP_STEPS 5 TRAIN.EMA 0.99"),
    "adamw, bfloat16": (
        "rtlinearformer_base",
        "TRAIN.PRECISION bf16 TRAIN.WARMUP_STEPS 5 TRAIN.EMA 0.99",
    ),
    "sgd, ohem, boundary": ("pidnet_s", "TRAIN.EMA 0.99"),
    "adamw, regions, dropout": (
        "rtlinearformer_base",
        "LOSS.DICE 0.5 LOSS.LOVASZ 0.5 LOSS.LABEL_SMOOTHING 0.1 MODEL.OPTIONS.dropout 0.1 "
        "TRAIN.WARMUP_STEPS 5 TRAIN.EMA 0.99",
    ),
    "adamw, drawn numbers": (
        "rtlinearformer_base",
        "MODEL.NAME lrformer_t LOSS.AUX_WEIGHTS () TRAIN.WARMUP_STEPS 5 TRAIN.EMA 0.99",
    ),
}
PLAIN = "TRAIN.PRECISION fp32 TRAIN.LOG_EVERY 4 TRAIN.END_EPOCH 9"


def run(part: Part) -> None:
    """All cases, the most important first."""
    for name, (network, more) in CASES.items():
        if part.tiny and name not in ("adamw", "sgd, ohem, boundary"):
            continue
        scenes = Scenes(part.device, network, more, 4)
        part.case(f"captured equals eager: {name}", equal, scenes)
        if name in ("adamw", "sgd, ohem, boundary"):
            part.case(f"a bad batch changes nothing: {name}", bad_batch, scenes)
        if name == "adamw":
            part.case("resumed equals whole", resumed, scenes)
            part.case("nothing waits", waits, scenes)
            part.case("a failed recording: a wait", failing, scenes, Waiting)
            part.case("a failed recording: no memory", failing, scenes, Hungry)
            part.case("float16 overflow", overflow, scenes)


class Scenes:
    """A few batches that all runs of a case see, and how a run of it begins."""

    def __init__(self, device: torch.device, network: str, more: str, count: int) -> None:
        self.device = device
        self.words = (network, PLAIN, "TRAIN.BATCH_SIZE_PER_GPU 4", more)
        config = self.config()
        loader = device_loader(config, dataset_of(config, boundary=network == "pidnet_s"), device)
        source = endless(loader)
        self.loader, self.batches = loader, [next(source) for _ in range(count)]

    def config(self, *more: str):
        """The configuration, with more pairs."""
        network, *words = self.words
        return settings(network, self.device, *words, *more)

    def begin(self, capture: str, *more: str) -> Training:
        """A run at its beginning; `capture` is TRAIN.CAPTURE."""
        return Training.begin(self.config(f"TRAIN.CAPTURE {capture}", *more), self.device,
                              images=len(self.loader.dataset), exact=True)  # fmt: skip

    @property
    def poisoned(self) -> dict[str, Any]:
        """The first batch with an image that is not finite."""
        image = self.batches[0]["image"].clone()
        image[1] = float("nan")
        return self.batches[0] | {"image": image}


def compare(
    other: dict[str, Any], eager: dict[str, Any], again: dict[str, Any]
) -> dict[str, dict[str, float]]:
    """Distances of `other` and of `again` from `eager`. Raises AssertionError above the spread."""
    found, spread = distance(other, eager), distance(again, eager)
    told = {"difference": found, "between two eager runs": spread}
    for name, value in found.items():
        limit = max(SPREAD * spread[name], FLOOR)
        assert value <= limit, f"{name} differs by {value:.3g}, allowed is {limit:.3g}; {told}"
    return told


def equal(scenes: Scenes) -> dict[str, Any]:
    """STEPS steps, eager twice and captured once."""
    ends, losses, generators, runs = [], [], [], []
    steps = STEPS if scenes.device.type == "cuda" else 6
    for capture in ("off", "off", "auto"):
        training = scenes.begin(capture)
        losses.append([report["loss"] for report in training.go(scenes.batches, steps)])
        ends.append(training.state())
        generators.append(random_state(training.step.world)[0])
        runs.append(training)
    told = compare(ends[2], ends[0], ends[1])
    gaps = [max(abs(a / b - 1) for a, b in zip(x, losses[0], strict=True)) for x in losses[1:]]
    assert gaps[1] <= max(SPREAD * gaps[0], 1e-5), f"losses differ by {gaps[1]:.3g} ({gaps[0]:.3g})"
    for key, value in generators[0].items():
        assert torch.equal(value, generators[2][key]), f"the {key} generator went another way"
    if scenes.device.type == "cuda":
        assert losses[0][-1] < losses[0][0], f"{STEPS} steps taught nothing: {losses[0]}"
        assert runs[2].step.capture.graph is not None, runs[2].told
    return told | {
        "captured": scenes.device.type == "cuda",
        "bit-equal": all(torch.equal(ends[2][key], ends[0][key]) for key in ends[0]),
        "largest relative gap of losses": gaps[1],
        "losses, first and last": [losses[0][0], losses[0][-1]],
    }


def bad_batch(scenes: Scenes) -> dict[str, Any]:
    """A batch that is not finite, while steps are replayed; then a good one."""
    training = scenes.begin("auto")
    training.go(scenes.batches, EAGER_STEPS + 3)
    before = training.state()
    (report,) = training.go([scenes.poisoned], 1)
    assert report["bad"] == 1.0
    after = training.state()
    changed = [key for key, value in before.items() if not torch.equal(value, after[key])]
    assert not changed, f"{len(changed)} tensors changed, such as {changed[:3]}"
    (report,) = training.go(scenes.batches, 1)
    later = training.state()
    assert report["bad"] == 0.0 and all(value.isfinite().all() for value in later.values())
    moved = [key for key, value in before.items() if not torch.equal(value, later[key])]
    assert len(moved) > len(before) // 2
    return {"tensors": len(before), "changed by the good step after it": len(moved)}


def resumed(scenes: Scenes) -> dict[str, Any]:
    """Twelve steps, against six, a checkpoint, and six more of a new run."""
    whole = scenes.begin("auto")
    whole.go(scenes.batches, 6)
    file = io.BytesIO()
    torch.save(whole.run.state(random_state(whole.step.world)), file)
    whole.go(scenes.batches, 6)
    ends = [whole.state()]
    for capture in ("auto", "off"):
        rest = scenes.begin(capture)
        file.seek(0)
        saved = torch.load(file, map_location="cpu", weights_only=True)
        rest.run.restore(saved, World(0, 1, scenes.device))
        assert rest.run.progress.step == 6
        rest.go(scenes.batches, 6)
        ends.append(rest.state())
    again = scenes.begin("off")
    again.go(scenes.batches, 12)
    return compare(ends[1], ends[0], again.state()) | {
        "resumed eagerly": distance(ends[2], ends[0])
    }


def waits(scenes: Scenes) -> dict[str, Any]:
    """Loading, steps and looks at them never wait for the GPU."""
    require_cuda(scenes.device, "seeing what waits")
    told = {}
    for capture in ("auto", "off"):
        training = scenes.begin(capture, "TRAIN.LOG_EVERY 3")
        source = endless(scenes.loader)
        try:
            for index in range(STEPS):
                if index == EAGER_STEPS + 2:
                    torch.cuda.set_sync_debug_mode("error")
                training.step(training.run, [next(source)])
                if training.step.is_due():
                    training.step.collect()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        training.step.collect(wait=True)
        told[capture] = f"{STEPS - EAGER_STEPS - 2} steps"
    return told


class Waiting(nn.Module):
    """A loss that looks at its number while it is recorded, which CUDA forbids."""

    def __init__(self, criterion: nn.Module) -> None:
        super().__init__()
        self.criterion = criterion

    def forward(self, *arguments: Any) -> Any:
        """The loss and its parts."""
        loss, parts = self.criterion(*arguments)
        if torch.cuda.is_current_stream_capturing():
            self.spoil(loss)
        return loss, parts

    def spoil(self, loss: torch.Tensor) -> None:
        """What cannot be recorded."""
        loss.item()


class Hungry(Waiting):
    """A loss that wants more memory than there is."""

    def spoil(self, loss: torch.Tensor) -> None:
        """What cannot be recorded."""
        torch.empty(1 << 46, dtype=torch.uint8, device=loss.device)


def failing(scenes: Scenes, kind: type[Waiting]) -> dict[str, Any]:
    """A step that cannot be recorded is computed eagerly from then on, and nothing is lost."""
    require_cuda(scenes.device, "recording")
    ends = []
    for spoilt in (False, False, True):
        training = scenes.begin("auto" if spoilt else "off")
        if spoilt:
            training.step.criterion = kind(training.step.criterion)
        stream = torch.cuda.current_stream()
        training.go(scenes.batches, STEPS)
        ends.append(training.state())
    assert training.step.capture.failed and len(training.told) == 1, training.told
    assert torch.cuda.current_stream() == stream
    torch.cuda.empty_cache()
    drawn = torch.rand(2, device=scenes.device)
    assert (drawn != drawn[0]).any()
    return compare(ends[2], ends[0], ends[1]) | {"told": training.told[0]}


def overflow(scenes: Scenes) -> dict[str, Any]:
    """A float16 step whose gradient overflows changes nothing but the scale of the loss."""
    require_cuda(scenes.device, "float16 with a scaler")
    training = scenes.begin("auto", "TRAIN.PRECISION fp16")
    step: Step = training.step
    assert step.capture is None and "float16 scales the loss" in training.told[0]
    good = [r["bad"] for r in training.go(scenes.batches, 4)]
    scaler = training.run.scaler
    usual, forced = scaler.get_scale(), 2.0**40
    scaler.update(forced)
    before = training.state()
    (report,) = training.go(scenes.batches, 1)
    assert report["bad"] == 1.0 and scaler.get_scale() == forced / 2
    after = training.state()
    changed = [key for key, value in before.items() if not torch.equal(value, after[key])]
    assert not changed, f"{len(changed)} tensors changed, such as {changed[:3]}"
    scaler.update(min(usual, 1024.0))
    reports = training.go(scenes.batches, STEPS)
    assert not any(r["bad"] for r in reports)
    first, last = reports[0]["loss"], reports[-1]["loss"]
    assert last < first, f"float16 taught nothing: {first} to {last}"
    return {"bad at first": good, "usual scale": usual, "losses": [first, last]}
