"""What the parts of the suite share: the project on sys.path, data, runs of training, records."""

import importlib.util
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]
SHARED = Path(os.environ.get("RTSEG_SHARED", ROOT.parent / "shared")).resolve()

import torch
from builders import build_criterion, build_dataset, build_network
from torch import Tensor
from training import build_plan, build_run, build_step
from yacs.config import CfgNode

from configs import get_config
from datasets import DeviceLoader, EpochBatchSampler, SceneDataset, get_meta
from utils.distributed import World, set_backends
from utils.records import environment, write_json
from utils.run_state import Run
from utils.step import Step

OK, FAILED, IMPOSSIBLE = "ok", "failed", "not possible"
CONFIGS = {
    "rtlinearformer_base": "configs/camvid/rtlinearformer_base_camvid_360x480.yaml",
    "pidnet_s": "configs/camvid/pidnet_s_camvid_360x480.yaml",
}
TINY = {
    "rtlinearformer_base": "MODEL.NAME rtlinearformer_slim MODEL.OPTIONS.base_channels 8 "
    "MODEL.OPTIONS.attention_channels 16 MODEL.OPTIONS.head_channels 16 "
    "MODEL.OPTIONS.context_channels 16",
    "pidnet_s": "MODEL.OPTIONS.base_channels 8 MODEL.OPTIONS.context_channels 8 "
    "MODEL.OPTIONS.head_channels 8 LOSS.OHEM_MIN_KEPT 1000",
}


class NotPossible(Exception):
    """A sentence: why something cannot be done here, which is no failure."""


def begin(device: torch.device) -> None:
    """Before anything else in a part's process."""
    if device.type == "cpu":
        torch.set_num_threads(1)  # threads that share a core with others wait for each other


def require_cuda(device: torch.device, what: str) -> None:
    """Raise NotPossible anywhere but on a GPU."""
    if device.type != "cuda":
        raise NotPossible(f"{what} is not possible on {device.type}")


def require_module(name: str, what: str) -> None:
    """Raise NotPossible where a package that `what` imports is not installed."""
    if importlib.util.find_spec(name) is None:
        raise NotPossible(f"{what} needs {name}, which is not installed here")


@dataclass
class Part:
    """One part of the suite: its cases, written out after each, so that a kill loses but one."""

    name: str
    device: torch.device
    out: Path
    cases: list[dict[str, Any]] = field(default_factory=list)

    @property
    def tiny(self) -> bool:
        """Whether this is a rehearsal: everything small."""
        return self.device.type == "cpu"

    def case(self, name: str, function: Callable[..., dict[str, Any] | None], *arguments) -> None:
        """Run one case. What it raises becomes its status, what it returns its numbers."""
        began, status, told = time.monotonic(), OK, {}
        try:
            told = function(*arguments) or {}
        except NotPossible as reason:
            status, told = IMPOSSIBLE, {"message": str(reason)}
        except Exception as error:  # noqa: BLE001 - whatever it is, the next case runs
            status, told = FAILED, {"message": f"{type(error).__name__}: {error}"[:2000]}
            traceback.print_exc()
        seconds = round(time.monotonic() - began, 2)
        self.cases.append({"case": name, "status": status, "seconds": seconds, **told})
        print(f"{self.name}: {name}: {status} in {seconds:.1f} s {told}", flush=True)
        self.write()

    def write(self) -> None:
        """The record as it stands."""
        record = {"part": self.name, "environment": environment(self.device), "cases": self.cases}
        write_json(self.out / f"{self.name}.json", record)


def settings(name: str, device: torch.device, *more: str) -> CfgNode:
    """The configuration of a network on CamVid at 480x360, or on drawn scenes without it.

    On the CPU both are tiny. `more`: KEY VALUE pairs in one string each.
    """
    words = ["TRAIN.AUGMENT_ON device", f"WORKERS {max(1, (os.cpu_count() or 2) - 2)}"]
    words += [f"DATASET.ROOT {SHARED}/"] if has_camvid() else []
    if not has_camvid() or device.type == "cpu":
        words += ["DATASET.DATASET synthetic DATASET.CLASS_WEIGHTS False DATASET.LABELS ''"]
        words += ["DATASET.TRAIN_SET 0:367 DATASET.TEST_SET 100000:100101"]
    words += ["TRAIN.IMAGE_SIZE (480,360) TRAIN.BASE_SIZE 480"]
    if device.type == "cpu":
        words += ["DATASET.SIZE (96,64) TRAIN.IMAGE_SIZE (96,64) TRAIN.BASE_SIZE 0"]
        words += ["DATASET.TRAIN_SET 0:24 DATASET.TEST_SET 100:104", TINY[name]]
    pairs = [word for text in (*words, *more) for word in text.split()]
    return get_config(ROOT / CONFIGS[name], pairs)


def has_camvid() -> bool:
    """Whether the photographs are here."""
    return (SHARED / "list/camvid/train.lst").is_file() and (SHARED / "camvid").is_dir()


def data_name(config: CfgNode) -> str:
    """For records."""
    width, height = config.TRAIN.IMAGE_SIZE
    return f"{config.DATASET.DATASET} {config.DATASET.TRAIN_SET} {width}x{height}"


@dataclass
class Training:
    """A run of training without its program, files or evaluation."""

    config: CfgNode
    device: torch.device
    run: Run
    step: Step
    told: list[str]

    @classmethod
    def begin(
        cls,
        config: CfgNode,
        device: torch.device,
        *,
        images: int = 367,
        exact: bool = False,
        world: World | None = None,
    ) -> "Training":
        """From random weights; `exact` chooses kernels that compute the same every time."""
        set_backends(seed=config.SEED, tf32=not exact, benchmark=not exact, deterministic=exact)
        meta = get_meta(config.DATASET.DATASET)
        model = build_network(config, meta)
        criterion = build_criterion(config, model, meta)
        plan, world = build_plan(config, images, 1), world or World(0, 1, device)
        run, told = build_run(config, model, meta, plan, world), []
        step = build_step(config, run, criterion, world, lambda: False, told.append)
        run.model.train()
        run.norms.remember()
        return cls(config, device, run, step, told)

    def go(self, batches: list[dict[str, Any]], steps: int) -> list[dict[str, float]]:
        """Take steps through `batches`, over and over; losses and norms of each."""
        reports = []
        for _ in range(steps):
            self.step(self.run, [batches[self.run.progress.step % len(batches)]])
            if self.step.is_due():
                reports += self.step.collect()
        reports += self.step.collect(wait=True)
        return [report.values | {"bad": float(report.bad)} for report in reports]

    def state(self) -> dict[str, Tensor]:
        """Copies of all that training changes, on the CPU, by name; counters of batches apart."""
        run = self.run
        tensors = {f"trained.{key}": value for key, value in run.model.state_dict().items()}
        if run.averaged is not None:
            values = run.averaged.model.state_dict()
            tensors |= {f"averaged.{key}": value for key, value in values.items()}
        for index, values in run.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{key}": value for key, value in values.items()}
        return {
            key: value.detach().cpu().clone()
            for key, value in tensors.items()
            if "num_batches" not in key
        }


def dataset_of(config: CfgNode, *, boundary: bool) -> SceneDataset:
    """The training images of a configuration."""
    return build_dataset(config, train=True, need_boundary=boundary)


def device_loader(
    config: CfgNode, dataset: SceneDataset, device: torch.device, limit: float = 8.0
) -> DeviceLoader:
    """Batches as the program makes them; `limit` gigabytes may be resident."""
    sampler = EpochBatchSampler(len(dataset), config.TRAIN.BATCH_SIZE_PER_GPU, seed=config.SEED)
    return DeviceLoader(dataset, sampler, device, limit=limit, workers=config.WORKERS)


def endless(loader: DeviceLoader) -> Iterator[dict[str, Any]]:
    """Batches of one epoch after the other."""
    epoch = 0
    while True:
        loader.sampler.set_epoch(epoch)
        yield from loader
        epoch += 1


def distance(one: dict[str, Tensor], two: dict[str, Tensor]) -> dict[str, float]:
    """Relative difference by Euclidean norm of trained and averaged weights and the optimiser."""
    sums: dict[str, list[float]] = {}
    for key, value in two.items():
        total = sums.setdefault(key.split(".")[0], [0.0, 0.0])
        total[0] += float((one[key].double() - value.double()).square().sum())
        total[1] += float(value.double().square().sum())
    return {name: (d / max(n, 1e-300)) ** 0.5 for name, (d, n) in sums.items()}


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
