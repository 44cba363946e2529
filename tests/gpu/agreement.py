"""CUDA gives what the CPU gives: networks, losses, counts, batches; NCCL with one process."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from common import (
    ROOT,
    NotPossible,
    Part,
    Training,
    dataset_of,
    device_loader,
    distance,
    endless,
    require_module,
    settings,
)
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from models import build_model, list_models
from models.registry import accepted_options
from utils.benchmark import measure, peak_memory
from utils.criterion import OhemCrossEntropy, SegCriterion
from utils.distributed import World, end_world, init_world, set_tf32
from utils.metrics import ConfusionMatrix

CPU = torch.device("cpu")
# What CUDA may differ from the CPU by, and why:
# Logits over the largest one, float32 without TF32: other kernels add in another order, through up
# to a hundred layers; between two kinds of CPU that is UNSTATED_NOISE in utils/parity.py.
LOGITS = 1e-3
# All gradients, by Euclidean norm, and the loss. In float64 only an operation that CUDA does
# otherwise differs more; in float32 batches of two images amplify rounding.
GRADIENTS = 1e-4
GRADIENTS_FLOAT32 = 1e-2
# OHEM in float32: the same pixels are kept, or the gradient would differ by 1e-2; the rest is the
# rounding of exponentials.
OHEM = 1e-4
# Grey levels of a pixel: as the two CPU paths may differ (tests/datasets/test_device.py), which
# round once more or less; their mean is far smaller, since most pixels are equal.
LEVELS, MEAN_LEVELS = 1.6, 0.05
# Share of label pixels: sampling positions that lie between two pixels round either way.
LABELS = 1e-3
LEVEL = 1 / (0.224 * 255)  # one grey level of a normalised image, of the least deviation


def networks(part: Part) -> None:
    """Every registered network."""
    names = list_models()
    small = ("pidnet_s", "rtlinearformer_slim")
    for name in [n for n in names if n in small] if part.tiny else names:
        part.case(name, network, name, part.device)


def network(name: str, device: torch.device) -> dict[str, float]:
    """Logits in float32; loss and gradients of a training pass in float64.

    Rounding grows through batch statistics: gradients of fresh float32 networks agree in nothing.
    LRFormer takes minutes for it on the CPU: its are those of float32, without batch statistics.
    """
    exact = not name.startswith("lrformer")
    set_tf32(False)
    torch.backends.cudnn.benchmark = False
    torch.manual_seed(0)
    options = {"drop_path": 0.0} if "drop_path" in accepted_options(name) else {}
    here, there = (build_model(name, 19, **options) for _ in range(2))
    there.load_state_dict(here.state_dict())
    for module in (*here.modules(), *there.modules()):
        if isinstance(module, _DropoutNd):
            module.p = 0.0  # CUDA draws other numbers
    there.to(device, memory_format=torch.channels_last)
    image = torch.randn(2, 3, 64, 128)
    label = torch.randint(0, 19, (2, 64, 128))
    with torch.no_grad():
        logits = [m.eval()(image.to(d)).cpu() for m, d in ((here, CPU), (there, device))]
    told = {"logits": float((logits[1] - logits[0]).abs().max() / logits[0].abs().max())}
    image, gradients, losses = image.double() if exact else image, [], []
    for model, where in ((here, CPU), (there, device)):
        criterion = SegCriterion(
            "ce",
            aux_weights=(0.4,) * model.num_aux,
            boundary_weight=1.0 if model.has_boundary else 0.0,
            align_corners=model.align_corners,
        ).to(where)
        edge = (label % 7 == 0).to(torch.uint8).to(where) if model.has_boundary else None
        model = model.double().train() if exact else model.eval()
        outputs = model.forward_train(image.to(where))
        loss, _ = criterion(outputs, label.to(where), edge)
        loss.backward()
        losses.append(loss.item())
        pairs = model.named_parameters()
        gradients.append({f"gradients.{n}": p.grad.cpu() for n, p in pairs if p.grad is not None})
    told["loss"] = abs(losses[1] / losses[0] - 1)
    told |= distance(gradients[1], gradients[0])
    assert told["logits"] <= LOGITS, told
    limit = GRADIENTS if exact else GRADIENTS_FLOAT32
    assert told["loss"] <= limit and told["gradients"] <= limit, told
    return told


def numbers(part: Part) -> None:
    """Counts, losses, batches, times."""
    part.case("confusion matrix", confusion, part.device)
    part.case("OHEM", ohem, part.device)
    for limit in (1.0, 0.0):
        name = "augmentation, " + ("resident" if limit else "streamed")
        part.case(name, augmentation, part.device, limit)
    part.case("time and memory", timing, part.device)


def confusion(device: torch.device) -> dict[str, Any]:
    """Equal counts, and values that are no class are found."""
    torch.manual_seed(0)
    label = torch.randint(0, 19, (3, 300, 400), dtype=torch.uint8)
    label[torch.rand(label.shape) < 0.2] = 255
    prediction = torch.randint(0, 19, label.shape)
    counts = [ConfusionMatrix(19, device=where) for where in (CPU, device)]
    for count, where in zip(counts, (CPU, device), strict=True):
        for _ in range(2):
            count.update(prediction.to(where), label.to(where))
        count.reduce()
    assert torch.equal(counts[0].matrix, counts[1].matrix.cpu())
    wrong = ConfusionMatrix(19, device=device)
    label[0, 0, 0] = 77
    try:
        wrong.update(prediction.to(device), label.to(device))
        wrong.reduce()
    except ValueError as error:
        return {"pixels": int(counts[0].matrix.sum()), "told": str(error)}
    raise AssertionError("label 77 of 19 classes was counted")


def ohem(device: torch.device) -> dict[str, float]:
    """Loss and gradient where many, few or no pixels are hard."""
    told = {}
    for name, spread, ignored, kept in (
        ("many hard", 1.0, 0.1, 5000),
        ("few hard", 30.0, 0.1, 5000),
        ("few valid", 1.0, 0.97, 5000),
        ("none valid", 1.0, 1.0, 5000),
    ):
        torch.manual_seed(0)
        label = torch.randint(0, 11, (2, 120, 160))
        logits = torch.randn(2, 11, 120, 160)
        logits = logits + spread * nn.functional.one_hot(label, 11).permute(0, 3, 1, 2)
        label[torch.rand(label.shape) < ignored] = 255
        results = []
        for where in (CPU, device):
            x = logits.to(where).requires_grad_()
            loss = OhemCrossEntropy(0.9, kept).to(where)(x, label.to(where))
            loss.backward()
            results.append((loss.item(), x.grad.cpu()))
        gap = abs(results[1][0] - results[0][0]) / max(abs(results[0][0]), 1e-9)
        gradient = float((results[1][1] - results[0][1]).norm() / results[0][1].norm().clamp(1e-9))
        told[name] = max(gap, gradient)
        assert told[name] <= OHEM, (name, gap, gradient)
    return told


def augmentation(device: torch.device, limit: float) -> dict[str, float]:
    """Batches made on the device, against the same code on the CPU."""
    config = settings("pidnet_s", device, "TRAIN.COLOR True TRAIN.BATCH_SIZE_PER_GPU 4")
    dataset = dataset_of(config, boundary=True)
    loaders = [device_loader(config, dataset, where, limit) for where in (CPU, device)]
    assert all((loader.resident is not None) == bool(limit) for loader in loaders)
    worst = {"levels": 0.0, "mean levels": 0.0, "label": 0.0, "boundary": 0.0}
    sources = [endless(loader) for loader in loaders]
    for _ in range(3):
        one, two = (next(source) for source in sources)
        assert one["name"] == two["name"] and two["image"].device.type == device.type
        gap = (two["image"].cpu() - one["image"]).abs() / LEVEL
        worst["levels"] = max(worst["levels"], float(gap.max()))
        worst["mean levels"] = max(worst["mean levels"], float(gap.mean()))
        for key in ("label", "boundary"):
            share = float((two[key].cpu() != one[key]).float().mean())
            worst[key] = max(worst[key], share)
    assert worst["levels"] <= LEVELS and worst["mean levels"] <= MEAN_LEVELS, worst
    assert worst["label"] <= LABELS and worst["boundary"] <= LABELS, worst
    return worst


def timing(device: torch.device) -> dict[str, float]:
    """The clock and the memory count that records rest on."""
    image = torch.randn(1024, 1024, device=device)
    result = measure(lambda: image @ image, device=device, warmup_seconds=0.1, min_seconds=0.1)
    assert result["p10_ms"] <= result["median_ms"] <= result["p90_ms"]  # an order, not a speed
    peak = peak_memory(lambda: image @ image, device)
    assert peak["bytes"] >= 2 * image.numel() * 4
    return {"median_ms": result["median_ms"], "bytes": peak["bytes"]}


def one_process(part: Part) -> None:
    """A process group of one: this part by torchrun, and the program by torchrun."""
    part.case("DistributedDataParallel and norms", started, part)
    part.case("tools/train.py", program, part.device)


def torchrun(*words: str) -> str:
    """Output of a program in a group of one. Raises RuntimeError where it fails."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1"]
    done = subprocess.run(
        [*command, *words], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    if done.returncode:
        raise RuntimeError(f"exit {done.returncode}: {(done.stdout + done.stderr)[-1500:]}")
    return done.stdout


def started(part: Part) -> dict[str, Any]:
    """What `wrapped` finds in a process that torchrun starts."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["--part", "wrapped", "--device", part.device.type, "--out", folder]
        torchrun(str(Path(__file__).with_name("suite.py")), *words)
        (case,) = json.loads((Path(folder) / "wrapped.json").read_text())["cases"]
    if case["status"] != "ok":
        raise RuntimeError(case["message"])
    return {key: value for key, value in case.items() if key not in ("case", "status", "seconds")}


def program(device: torch.device) -> dict[str, Any]:
    """The training program, one epoch of two steps."""
    require_module("tensorboardX", "tools/train.py")
    with tempfile.TemporaryDirectory() as folder:
        words = "--cfg configs/synthetic/rtlinearformer_slim_synthetic.yaml DATASET.SIZE (96,64) "
        words += "TRAIN.IMAGE_SIZE (96,64) DATASET.TRAIN_SET 0:8 DATASET.TEST_SET 100:104 "
        words += "MODEL.OPTIONS.base_channels 8 "
        words += f"TRAIN.BATCH_SIZE_PER_GPU 4 TRAIN.END_EPOCH 1 OUTPUT_DIR {folder} WORKERS 0"
        out = torchrun("tools/train.py", *words.split())
        assert f"1 process on {device.type}" in out and "epoch 1/1" in out, out
    return {"told": next(line for line in out.splitlines() if "1 process on" in line)}


def wrapped(part: Part) -> None:
    """Inside of torchrun: a run wrapped as one of several, whose group is of one."""
    world = init_world(())
    try:
        part.case("wrapped", compare_wrapped, world)
    finally:
        end_world()


def compare_wrapped(world: World) -> dict[str, Any]:
    """Wrapped and plain runs go the same way, also by two batches a step."""
    device, told = world.device, {}
    backend = dist.get_backend()
    if device.type == "cuda" and backend != "nccl":
        raise NotPossible(f"this PyTorch has no NCCL but {backend}")
    # Everything is wrapped for more than one process alone, so the run is told of two. Sums over
    # the group of one then are what they are of one process.
    several = World(0, 2, device)
    for accumulate in (1, 2):
        config = settings("pidnet_s", device, "TRAIN.PRECISION fp32 TRAIN.CAPTURE off",
                          f"TRAIN.ACCUMULATE {accumulate} TRAIN.BATCH_SIZE_PER_GPU 4")  # fmt: skip
        source = endless(device_loader(config, dataset_of(config, boundary=True), device))
        batches, ends = [next(source) for _ in range(4)], []
        for kind in (world, world, several):
            training = Training.begin(config, device, exact=True, world=kind)
            for _ in range(2):
                training.step(training.run, batches[:accumulate])
            training.step.collect(wait=True)
            ends.append(training.state())
        assert isinstance(training.step.forward, nn.parallel.DistributedDataParallel)
        norms = [m for m in training.run.model.modules() if isinstance(m, _BatchNorm)]
        found, spread = distance(ends[2], ends[0]), distance(ends[1], ends[0])
        for name, value in found.items():
            # On the CPU its norms are computed by other code, whose rounding grows.
            limit = 1.0 if device.type == "cpu" else max(10 * spread[name], 1e-5)
            assert value <= limit, f"{name}: {value:.3g} above {limit:.3g}; {found}, {spread}"
        told[f"{accumulate} batches a step"] = found
    kinds = {type(m).__name__ for m in norms}
    assert kinds == {"SyncBatchNorm" if device.type == "cuda" else "_CpuSyncBatchNorm2d"}, kinds
    return told | {"backend": backend, "norms": len(norms), "kind": kinds.pop()}
