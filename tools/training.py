"""A training run from its configuration: what it needs, checked, and built for this process."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from builders import (
    Criterion,
    build_criterion,
    build_dataset,
    build_eval_transform,
    build_network,
    build_train_loader,
    check_runtime,
    count,
    list_name,
    load_into,
    require_weights,
    unused_weights,
)
from checks import (
    advice,
    check_folder,
    check_network,
    check_test_batch,
    idle_settings,
    refuse_changes,
    unused_reset,
)
from planning import batch_parts, build_plan, build_schedule, length
from yacs.config import CfgNode

from configs.loader import changed_keys
from datasets import (
    DatasetMeta,
    EpochBatchSampler,
    SceneDataset,
    get_meta,
    make_loader,
    quick_check,
    shared_images,
)
from models import SegModel
from models.weights import read_checkpoint
from utils.averaging import AveragedWeights
from utils.capture import Capture
from utils.checkpoint import (
    clear_leftovers,
    find_resumable,
    keep_earlier_run,
    lock_folder,
    read_resumable,
    require_room,
)
from utils.distributed import (
    World,
    is_launched,
    share_cores,
    share_object,
    synchronise_norms,
    world_size,
    wrap_forward,
)
from utils.errors import InputError
from utils.optim import build_optimizer
from utils.run_state import Plan, Precision, Run
from utils.step import Step, TrainForm


@dataclass
class Job:
    """What a configuration asks for, found in order; nothing has been started or written.

    Attributes:
        config: the whole configuration.
        folder: of the run.
        remarks: sentences of warning.
        report: where the weights come from.
        class_weights: a sentence about those that were counted.
        saved: content of the checkpoint to go on from.
        saved_at: its file.
        damage: a sentence where that is not the newest one.
    """

    config: CfgNode
    folder: Path
    meta: DatasetMeta
    model: SegModel
    criterion: Criterion
    train_set: SceneDataset
    test_set: SceneDataset
    plan: Plan
    remarks: list[str]
    report: str = "random initialisation"
    class_weights: str = ""
    saved: dict[str, Any] | None = None
    saved_at: Path | None = None
    damage: str = ""


def check_job(config: CfgNode, folder: Path) -> Job:
    """Refuse what can be refused before processes are started or anything is written.

    Raises:
        ValueError, OSError: in one sentence, what does not fit and how it is cured.
    """
    t, weights = config.TRAIN, config.MODEL.PRETRAINED
    if weights:
        require_weights(weights, "MODEL.PRETRAINED")
    check_folder(folder, "OUTPUT_DIR")
    meta = get_meta(config.DATASET.DATASET)
    model = build_network(config, meta)
    criterion = build_criterion(config, model, meta)
    train_set = build_dataset(config, train=True, need_boundary=model.has_boundary)
    test_set = build_dataset(config, train=False)
    remarks = [
        *quick_check(train_set),
        *quick_check(test_set),
        *unused_weights(config, meta),
        *unused_reset(config),
        *idle_settings(config),
        *shared_images(train_set, test_set),
    ]
    if not test_set.labelled:
        raise InputError(
            f"DATASET.TEST_SET {config.DATASET.TEST_SET} names no labels; training scores every "
            "epoch on it and needs image<TAB>label"
        )
    check_test_batch(config, test_set)
    processes = world_size(config.GPUS)
    plan = build_plan(config, len(train_set), processes)
    check_network(config, meta, processes)
    job = Job(config, folder, meta, model, criterion, train_set, test_set, plan, remarks)
    if t.RESUME and not is_launched():
        find_saved(job)
    if weights and job.saved is None:
        job.report = load_into(model, weights, meta, config.MODEL.RESET, key="MODEL.PRETRAINED")
    if job.saved is None and not is_launched():
        check_room(job)
    return job


def check_room(job: Job) -> None:
    """Raise ValueError where a new run's checkpoints would not fit."""
    t = job.config.TRAIN
    moments = 2 if t.OPTIMIZER == "adamw" else 1
    require_room(job.folder, job.model, moments=moments, networks=2 if t.EMA else 1)


def find_saved(job: Job) -> None:
    """Look for the checkpoint to go on from. Raises ValueError where it is of another run."""

    def read(path: Path) -> dict[str, Any]:
        return read_resumable(path, read_checkpoint, job.model.architecture, job.meta.class_names)

    job.saved = None
    if found := find_resumable(job.folder, read):
        job.saved, job.saved_at, job.damage = found
        refuse_changes(job.config, job.saved["config"], job.saved.get("options", {}), job.saved_at)


def open_folder(job: Job, world: World) -> list[Any]:
    """Make the run folder this run's own; what is returned keeps it so.

    The first process decides alone what the run goes on from. Where it refuses, the others end
    without a word.
    """
    for section in ("TRAIN", "TEST"):
        Precision.choose(job.config[section].PRECISION, world.device, f"{section}.PRECISION")
    check_runtime(job.config, world.device)
    held, problem = [], None
    if world.is_main:
        try:
            held = _take_folder(job)
        except (ValueError, OSError) as error:
            problem = error
    told = share_object((problem is not None, job.saved), world)
    if problem is not None:
        raise problem
    refused, job.saved = told
    if refused:
        raise SystemExit(2)
    return held


def _take_folder(job: Job) -> list[Any]:
    """The locks of the folder, once it is clear what the run in it goes on from."""
    held, folder = [], job.folder
    if folder.is_dir():
        held.append(lock_folder(folder))
        if job.config.TRAIN.RESUME:  # once more, as nobody else writes there now
            find_saved(job)
    if job.saved is None:
        check_room(job)
        if aside := keep_earlier_run(folder):
            job.remarks.append(f"an earlier run was in {folder}; it is kept as {aside}")
    if not folder.is_dir():
        folder.mkdir(parents=True)
        held.append(lock_folder(folder))
    clear_leftovers(folder)
    if job.damage:
        job.remarks.append(job.damage)
        # Else the next save would keep it in place of the whole one.
        os.replace(folder / "last.pt", folder / "last.pt.damaged")
    return held


def start_run(job: Job, world: World) -> Run:
    """The run at its beginning, or where it was left."""
    config, saved = job.config, job.saved
    run = build_run(config, job.model, job.meta, job.plan, world)
    if saved is None:
        return run
    run.restore(saved, world)
    changed = changed_keys(config, saved["config"])
    changed.pop("TRAIN.RESUME", None)
    job.report = f"resumed after epoch {run.progress.epoch}, step {run.progress.step_in_epoch}"
    job.report += "".join(f"; {key} {then} -> {now}" for key, (then, now) in changed.items())
    saved.clear()  # it holds all weights a second time
    return run


def opening(job: Job, run: Run, loaders: "Loaders", world: World) -> list[str]:
    """What the log says before the first step."""
    config, plan = job.config, run.plan
    precision = Precision.choose(config.TRAIN.PRECISION, world.device).name
    last_lr = build_schedule(config, plan)(1 - 1 / plan.steps)
    lines = [f"warning: {remark}" for remark in job.remarks]
    if config.GPUS and world.device.type == "cpu":
        lines.append("GPUS 0: there is no CUDA device on this machine; training on the CPU")
    if config.TRAIN.RESUME and job.saved is None:
        lines.append(f"TRAIN.RESUME: there is no {job.folder / 'last.pt'}; starting anew")
    return [
        *lines,
        f"{run.model.architecture}, {sum(p.numel() for p in run.model.parameters()):,} parameters, "
        f"{job.meta.num_classes} classes; {job.report}",
        f"{job.meta.name}: {count(len(job.train_set), 'image')} of "
        f"{list_name(config, 'TRAIN_SET')} to train on, {len(job.test_set)} of "
        f"{list_name(config, 'TEST_SET')} to score",
        f"{count(world.size, 'process')} on {world.device}, {precision}; batch {plan.batch} "
        f"({batch_parts(config, world.size)}); {length(plan)}",
        loaders.feeding,
        *([job.class_weights] if job.class_weights else []),
        *([] if plan.seconds else advice(config, plan, last_lr)),
    ]


@dataclass
class Loaders:
    """The batches of a run.

    Attributes:
        sampler: decides what `train` yields next.
        train: training batches of this process.
        test: this process's share of the images to score.
        feeding: one line about where training batches come from.
    """

    sampler: EpochBatchSampler
    train: Iterable[dict[str, Any]]
    test: Iterable[dict[str, Any]]
    feeding: str

    def start_at(self, run: Run, calm: float) -> None:
        """Let `train` yield what is left of the epoch under way; `calm` is TRAIN.CALM."""
        plan, progress = run.plan, run.progress

        def is_calm(batch: int) -> bool:
            return calm > 0 and plan.share(progress, batch // plan.accumulate) >= 1 - calm

        self.sampler.calm = is_calm
        self.sampler.set_epoch(progress.epoch, start_batch=progress.step_in_epoch * plan.accumulate)

    def cached(self) -> str:
        """What the cache holds after a first epoch, or ""."""
        cache = getattr(self.train, "dataset", None) and self.train.dataset.cache
        if cache is None:
            return ""
        scenes, size = cache.usage()
        return f"cache: {scenes} of {len(self.train.dataset)} images, {size / 1e9:.2f} GB"


def build_loaders(
    config: CfgNode, train_set: SceneDataset, test_set: SceneDataset, world: World
) -> Loaders:
    """Training and test batches of one process among those of `world`."""
    workers = share_cores(config.WORKERS, world)
    sampler = EpochBatchSampler(
        len(train_set),
        config.TRAIN.BATCH_SIZE_PER_GPU,
        seed=config.SEED,
        rank=world.rank,
        world_size=world.size,
    )
    train, feeding = build_train_loader(config, train_set, sampler, world.device, workers)
    test = make_loader(
        test_set,
        batch_size=config.TEST.BATCH_SIZE_PER_GPU,
        indices=range(world.rank, len(test_set), world.size),
        workers=workers,
    )
    return Loaders(sampler, train, test, feeding)


def build_run(config: CfgNode, model: SegModel, meta: DatasetMeta, plan: Plan, world: World) -> Run:
    """What is learnt, and all that goes with it, on the device; at its beginning."""
    t = config.TRAIN
    layout = torch.channels_last if t.CHANNELS_LAST else torch.contiguous_format
    model.to(world.device, memory_format=layout)
    if t.SYNC_BN:
        synchronise_norms(model, world)
    optimizer = build_optimizer(
        model,
        t.OPTIMIZER,
        lr=t.LR,
        weight_decay=t.WD,
        momentum=t.MOMENTUM,
        decay_norms=t.WD_ON_NORM,
        lr_multipliers=model.lr_multipliers,
        no_decay=model.no_decay,
    )
    facts = {
        "architecture": model.architecture,
        "options": dict(config.MODEL.OPTIONS),
        "dataset": meta.name,
        "class_names": list(meta.class_names),
        "palette": [list(color) for color in meta.palette],
        "input": build_eval_transform(config).facts(),
        "config": config.dump(),
    }
    torch.manual_seed(config.SEED + world.rank)
    return Run(
        model,
        optimizer,
        Precision.choose(t.PRECISION, world.device).scaler(),
        plan,
        facts,
        AveragedWeights(model, t.EMA) if t.EMA else None,
        synchronised=t.SYNC_BN,
    )


def build_step(
    config: CfgNode,
    run: Run,
    criterion: Criterion,
    world: World,
    stop: Callable[[], bool],
    tell: Callable[[str], None],
) -> Step:
    """How a step is computed; `tell` gets a sentence where it cannot be as the setting asks."""
    t = config.TRAIN
    return Step(
        wrap_forward(TrainForm(run.model), world),
        criterion.to(world.device),
        world=world,
        precision=Precision.choose(t.PRECISION, world.device),
        learning_rate=build_schedule(config, run.plan),
        stop=stop,
        clip_grad=t.CLIP_GRAD,
        log_every=t.LOG_EVERY,
        capture=build_capture(config, criterion, world, tell),
    )


def build_capture(
    config: CfgNode, criterion: Criterion, world: World, tell: Callable[[str], None]
) -> Capture | None:
    """A recorder of steps, where TRAIN.CAPTURE and the machine allow one."""
    t = config.TRAIN
    reasons = {
        "there is no CUDA device": world.device.type != "cuda",
        "there are several processes": world.size > 1,
        "TRAIN.ACCUMULATE is above 1": t.ACCUMULATE > 1,
        "float16 scales the loss": Precision.choose(t.PRECISION, world.device).name == "fp16",
        "the loss looks at its numbers on the way": criterion.needs_host,
    }
    against = [reason for reason, holds in reasons.items() if holds]
    if t.CAPTURE == "off" or (against and t.CAPTURE == "auto" and world.device.type != "cuda"):
        return None
    if against:
        tell(f"steps are not captured but computed one by one: {against[0]}")
        return None
    return Capture(tell)
